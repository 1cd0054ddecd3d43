/* The CUDA runtime of a GPU that does nothing: work is counted and never done. Its memory is in memory.c. */
#define _GNU_SOURCE
#include "nullgpu.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
__thread int nullgpu_device;
int nullgpu_contexts[MOST_DEVICES];

/* ---- What is asked of the stand-in, by environment variables ---- */

static int device_count(void) {
  const char *given = getenv("NULLGPU_DEVICES");
  return given ? atoi(given) : 1;
}

size_t nullgpu_memory_bytes(void) {
  const char *given = getenv("NULLGPU_GIB");
  return (size_t)((given ? atof(given) : 139.8) * (1 << 30));
}

/* ---- Counters, and a log of every kernel where NULLGPU_LOG names a file ---- */

static long counters[COUNTERS];
static void (*on_wait)(const char *);

API void nullgpu_counts(long *out) { memcpy(out, counters, sizeof counters); }
API int nullgpu_has_context(int device) { return nullgpu_contexts[device]; }
API void nullgpu_on_wait(void (*function)(const char *)) { on_wait = function; }

void nullgpu_count(enum counter counter) {
  __sync_fetch_and_add(&counters[counter], 1);
  nullgpu_contexts[nullgpu_device] = 1;
}

API void nullgpu_log(const char *format, ...) {
  static FILE *file;
  const char *path = getenv("NULLGPU_LOG");
  if (!path) return;
  pthread_mutex_lock(&lock);
  if (!file) file = fopen(path, "w");
  va_list arguments;
  va_start(arguments, format);
  vfprintf(file, format, arguments);
  va_end(arguments);
  fflush(file);
  pthread_mutex_unlock(&lock);
}

API void nullgpu_launched(const char *kernel) {
  nullgpu_count(LAUNCHES);
  nullgpu_log("kernel %s\n", kernel);
}

int nullgpu_waited(const char *call) {
  nullgpu_count(WAITS);
  nullgpu_log("wait %s\n", call);
  if (on_wait) on_wait(call);
  return 0;
}

/* ---- Kernels: torch's registered functions, by name in a hash table ---- */

#define NAMES (1 << 20)
static struct {
  const void *function;
  const char *name;
} names[NAMES];

static size_t place_of(const void *function) {
  size_t place = ((uintptr_t)function >> 4) % NAMES;
  while (names[place].function && names[place].function != function) place = (place + 1) % NAMES;
  return place;
}

static cudaError_t launch(const void *function) {
  const char *name = names[place_of(function)].name;
  nullgpu_launched(name ? name : "?");
  return cudaSuccess;
}

API void **__cudaRegisterFatBinary(void *binary) {
  static long handle;
  return (void **)(handle += 16);
}
API void __cudaRegisterFatBinaryEnd(void **handle) {}
API void __cudaUnregisterFatBinary(void **handle) {}
API void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int a, size_t b, int c, int d) {}
API void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int limit, void *a,
                                void *b, void *c, void *d, int *e) {
  pthread_mutex_lock(&lock);
  size_t place = place_of(host);
  names[place].function = host;
  names[place].name = name;
  pthread_mutex_unlock(&lock);
}

static __thread struct {
  dim3 grid, block;
  size_t shared;
  void *stream;
} calls[16];
static __thread int depth;

API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  calls[depth].grid = grid;
  calls[depth].block = block;
  calls[depth].shared = shared;
  calls[depth++].stream = stream;
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = calls[--depth].grid;
  *block = calls[depth].block;
  *shared = calls[depth].shared;
  *(void **)stream = calls[depth].stream;
  return cudaSuccess;
}
API cudaError_t __cudaGetKernel(void **kernel, const void *function) {
  *kernel = (void *)function;
  return cudaSuccess;
}
API cudaError_t __cudaLaunchKernel(void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) {
  return launch(kernel);
}
API cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                                 cudaStream_t stream) {
  return launch(function);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments) {
  return launch(function);
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
  function(data);
  return cudaSuccess;
}
API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *function) {
  memset(out, 0, sizeof *out);
  out->maxThreadsPerBlock = 1024;
  out->numRegs = 32;
  out->binaryVersion = out->ptxVersion = 90;
  return cudaSuccess;
}
API cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value) {
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int size, size_t b) {
  *blocks = 2;
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int size,
                                                                       size_t shared, unsigned flags) {
  *blocks = 2;
  return cudaSuccess;
}

/* ---- Devices: as many H200 as asked for ---- */

API cudaError_t cudaGetDeviceCount(int *count) {
  *count = getenv("NULLGPU_OLD_DRIVER") ? 0 : device_count();
  return *count ? cudaSuccess : cudaErrorInsufficientDriver;
}
API cudaError_t cudaGetDevice(int *device) {
  *device = nullgpu_device;
  return cudaSuccess;
}
API cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return cudaErrorInvalidDevice;
  if (!nullgpu_contexts[device]) nullgpu_log("context on device %d\n", device);
  nullgpu_contexts[device] = 1;
  nullgpu_device = device;
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int device) {
  if (device >= device_count()) return cudaErrorInvalidDevice;
  *out = (struct cudaDeviceProp){
      .name = "NVIDIA H200",
      .totalGlobalMem = nullgpu_memory_bytes(),
      .sharedMemPerBlock = 49152,
      .regsPerBlock = 65536,
      .warpSize = 32,
      .memPitch = INT32_MAX,
      .maxThreadsPerBlock = 1024,
      .maxThreadsDim = {1024, 1024, 64},
      .maxGridSize = {INT32_MAX, 65535, 65535},
      .totalConstMem = 65536,
      .major = 9,
      .textureAlignment = 512,
      .texturePitchAlignment = 32,
      .multiProcessorCount = 132,
      .unifiedAddressing = 1,
      .canMapHostMemory = 1,
      .concurrentKernels = 1,
      .asyncEngineCount = 3,
      .memoryBusWidth = 6144,
      .l2CacheSize = 52428800,
      .maxThreadsPerMultiProcessor = 2048,
      .streamPrioritiesSupported = 1,
      .globalL1CacheSupported = 1,
      .localL1CacheSupported = 1,
      .sharedMemPerMultiprocessor = 233472,
      .regsPerMultiprocessor = 65536,
      .managedMemory = 1,
      .cooperativeLaunch = 1,
      .sharedMemPerBlockOptin = 232448,
      .maxBlocksPerMultiProcessor = 32,
      .reservedSharedMemPerBlock = 1024,
      .pciBusID = device + 1,
      .clusterLaunch = 1,
      .uuid.bytes = {device + 1},
  };
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  struct cudaDeviceProp found;
  cudaGetDeviceProperties(&found, 0);
  switch ((int)attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = found.maxThreadsPerBlock; break;
    case cudaDevAttrMaxBlockDimX: *value = found.maxThreadsDim[0]; break;
    case cudaDevAttrMaxBlockDimY: *value = found.maxThreadsDim[1]; break;
    case cudaDevAttrMaxBlockDimZ: *value = found.maxThreadsDim[2]; break;
    case cudaDevAttrMaxGridDimX: *value = found.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: *value = found.maxGridSize[1]; break;
    case cudaDevAttrMaxGridDimZ: *value = found.maxGridSize[2]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = found.sharedMemPerBlock; break;
    case cudaDevAttrWarpSize: *value = found.warpSize; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = found.regsPerBlock; break;
    case cudaDevAttrClockRate: *value = 1785000; break;
    case cudaDevAttrMultiProcessorCount: *value = found.multiProcessorCount; break;
    case cudaDevAttrMemoryClockRate: *value = 2619000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = found.memoryBusWidth; break;
    case cudaDevAttrL2CacheSize: *value = found.l2CacheSize; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = found.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = found.major; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = found.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = found.regsPerMultiprocessor; break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = found.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = found.maxBlocksPerMultiProcessor; break;
    default: *value = 0;
  }
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetPCIBusId(char *out, int size, int device) {
  snprintf(out, size, "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int *out, int device, int peer) {
  *out = 1;
  return cudaSuccess;
}
API cudaError_t cudaDeviceSynchronize(void) { return nullgpu_waited("cudaDeviceSynchronize"); }
API cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
API cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
API cudaError_t cudaGetLastError(void) { return cudaSuccess; }
API cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }
API const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory"
         : error == cudaErrorInvalidDevice  ? "invalid device ordinal"
                                            : "error of the stand-in for a GPU";
}
API const char *cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorUnknown";
}

/* ---- Streams and events: handles of nothing ---- */

API int nullgpu_handle(void *out) {
  static long handle = 4096;
  nullgpu_contexts[nullgpu_device] = 1;
  *(void **)out = (void *)__sync_add_and_fetch(&handle, 16);
  return 0;
}
API cudaError_t cudaStreamCreate(cudaStream_t *out) { return nullgpu_handle(out); }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) { return nullgpu_handle(out); }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int p) { return nullgpu_handle(out); }
API cudaError_t cudaEventCreate(cudaEvent_t *out) { return nullgpu_handle(out); }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) { return nullgpu_handle(out); }
API cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
  *priority = 0;
  return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return nullgpu_waited("cudaStreamSynchronize"); }
API cudaError_t cudaEventSynchronize(cudaEvent_t event) { return nullgpu_waited("cudaEventSynchronize"); }
API cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = 1;
  return cudaSuccess;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { return cudaSuccess; }
API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                         unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                         const cudaGraphEdgeData **edges, size_t *count) {
  if (id) *id = 0;
  return cudaStreamIsCapturing(stream, status);
}

/* torch asks here for driver calls: those of driver.c, else one that succeeds. */
static int succeed(void) { return 0; }
API cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version,
                                                 unsigned long long flags,
                                                 enum cudaDriverEntryPointQueryResult *result) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  *out = driver ? dlsym(driver, name) : NULL;
  if (!*out) *out = (void *)succeed;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
