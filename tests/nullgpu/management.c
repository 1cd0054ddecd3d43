/* libnvidia-ml.so.1 of the stand-in: what torch's allocator asks before it lets segments grow, and no fabric. */
#include <stddef.h>

#define API __attribute__((visibility("default")))
#define NOT_SUPPORTED 3

API int nvmlInit_v2(void) { return 0; }
API int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **out) {
  *out = (void *)1;
  return 0;
}
API int nvmlDeviceGetGpuFabricInfoV(void *device, void *out) { return 0; } /* leaves it at none */
API int nvmlDeviceGetNvLinkRemoteDeviceType(void *device, unsigned link, int *out) { return NOT_SUPPORTED; }
API int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, void *out) { return NOT_SUPPORTED; }
API int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, void *out) { return *count = 0; }
API int nvmlSystemGetCudaDriverVersion_v2(int *version) { return NOT_SUPPORTED; }
