/* libcuda.so.1 of the stand-in: the driver calls that torch and Triton's launcher make, answered by runtime.c. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define RUNTIME(name) dlsym(RTLD_DEFAULT, name)
#define NOT_SUPPORTED 801

API int cuInit(unsigned flags) { return 0; }
API int cuDriverGetVersion(int *version) { return ((int (*)(int *))RUNTIME("cudaDriverGetVersion"))(version); }
API int cuDeviceGetCount(int *count) { return ((int (*)(int *))RUNTIME("cudaGetDeviceCount"))(count); }
API int cuDeviceGet(int *out, int device) {
  *out = device;
  return 0;
}
API int cuDeviceGetAttribute(int *value, int attribute, int device) {
  return ((int (*)(int *, int, int))RUNTIME("cudaDeviceGetAttribute"))(value, attribute, device);
}
API int cuDeviceGetName(char *out, int size, int device) {
  strncpy(out, "NVIDIA H200", size);
  return 0;
}
API int cuCtxGetCurrent(void **out) {
  *out = (void *)1;
  return 0;
}
API int cuCtxSetCurrent(void *context) { return 0; }
API int cuCtxGetDevice(int *device) { return ((int (*)(int *))RUNTIME("cudaGetDevice"))(device); }
API int cuCtxGetLimit(size_t *value, int limit) { return *value = 0; }
API int cuCtxSetLimit(int limit, size_t value) { return 0; }
API int cuDevicePrimaryCtxRetain(void **out, int device) { return cuCtxGetCurrent(out); }
API int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  if (flags) *flags = 0;
  *active = ((int (*)(int))RUNTIME("nullgpu_has_context"))(device);
  return 0;
}

/* A module is the name of its kernel. */
struct module {
  char name[256];
};
API int cuModuleLoadData(struct module **out, const void *image) {
  *out = calloc(1, sizeof **out);
  return 0;
}
API int cuModuleLoadDataEx(struct module **out, const void *image, unsigned count, void *options, void *values) {
  return cuModuleLoadData(out, image);
}
API int cuModuleLoad(struct module **out, const char *file) { return cuModuleLoadData(out, file); }
API int cuModuleUnload(struct module *module) { return 0; }
API int cuModuleGetFunction(struct module **out, struct module *module, const char *name) {
  strncpy(module->name, name, sizeof module->name - 1);
  *out = module;
  return 0;
}
API int cuFuncGetAttribute(int *value, int attribute, void *function) {
  enum { MAX_THREADS_PER_BLOCK = 0, NUM_REGS = 4 };
  *value = attribute == MAX_THREADS_PER_BLOCK ? 1024 : attribute == NUM_REGS ? 64 : 0;
  return 0;
}
API int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
API int cuFuncSetCacheConfig(void *function, int config) { return 0; }
API int cuGetErrorString(int error, const char **out) {
  *out = "error of the stand-in for a GPU";
  return 0;
}

static int launched(struct module *function) {
  ((void (*)(const char *))RUNTIME("nullgpu_launched"))(function->name);
  return 0;
}
API int cuLaunchKernel(struct module *function) { return launched(function); }
API int cuLaunchCooperativeKernel(struct module *function) { return launched(function); }
API int cuLaunchKernelEx(const void *config, struct module *function) { return launched(function); }

API int cuOccupancyMaxActiveClusters(int *clusters, void *function, void *config) {
  *clusters = 66;
  return 0;
}
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int size, size_t shared) {
  *blocks = 2;
  return 0;
}
enum { MEMORY_TYPE = 2, DEVICE_POINTER = 3, ON_DEVICE = 2 };
API int cuPointerGetAttribute(void *out, int attribute, uint64_t pointer) {
  if (attribute == DEVICE_POINTER) *(uint64_t *)out = pointer;
  else *(int *)out = attribute == MEMORY_TYPE ? ON_DEVICE : 0;
  return 0;
}
API int cuPointerGetAttributes(unsigned count, int *attributes, void **out, uint64_t pointer) {
  for (unsigned i = 0; i < count; i++)
    if (out[i]) cuPointerGetAttribute(out[i], attributes[i], pointer);
  return 0;
}

/* ---- Expandable segments: addresses are reserved once, and memory is put behind them piece by piece ---- */

#define OUT_OF_MEMORY 2
struct allocation {
  int device;
  size_t bytes;
};
struct properties {
  int type, handle_types, location_type, device;
};
API int cuMemGetAllocationGranularity(size_t *bytes, const struct properties *properties, int option) {
  *bytes = 2 << 20;
  return 0;
}
API int cuMemAddressReserve(uint64_t *out, size_t bytes, size_t alignment, uint64_t wanted, uint64_t flags) {
  *out = (uint64_t)((void *(*)(size_t))RUNTIME("nullgpu_reserve"))(bytes);
  return *out ? 0 : OUT_OF_MEMORY;
}
API int cuMemAddressFree(uint64_t address, size_t bytes) {
  ((void (*)(void *))RUNTIME("nullgpu_leave"))((void *)address);
  return 0;
}
API int cuMemCreate(struct allocation **out, size_t bytes, const struct properties *properties, uint64_t flags) {
  if (!((int (*)(int, size_t))RUNTIME("nullgpu_take"))(properties->device, bytes)) return OUT_OF_MEMORY;
  *out = malloc(sizeof **out);
  **out = (struct allocation){properties->device, bytes};
  return 0;
}
API int cuMemRelease(struct allocation *it) {
  ((void (*)(int, size_t))RUNTIME("nullgpu_give"))(it->device, it->bytes);
  free(it);
  return 0;
}
API int cuMemMap(uint64_t address, size_t bytes, size_t offset, struct allocation *it, uint64_t flags) { return 0; }
API int cuMemUnmap(uint64_t address, size_t bytes) { return 0; }
API int cuMemSetAccess(uint64_t address, size_t bytes, const void *description, size_t count) { return 0; }

API int cuStreamIsCapturing(void *stream, int *status) { return *status = 0; }
API int cuTensorMapEncodeTiled(void *map) { return 0; }
API int cuTensorMapEncodeIm2col(void *map) { return 0; }
API int cuLinkCreate_v2(void) { return NOT_SUPPORTED; }
API int cuLinkAddData_v2(void) { return NOT_SUPPORTED; }
API int cuLinkComplete(void) { return NOT_SUPPORTED; }
API int cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, void *result) {
  *out = dlsym(dlopen("libcuda.so.1", RTLD_NOW), name);
  return *out ? 0 : 500; /* not found */
}
API int cuGetProcAddress(const char *name, void **out, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, out, version, flags, NULL);
}
