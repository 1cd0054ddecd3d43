/* cuBLAS and NCCL of the stand-in: products are launches, collectives are counted and carry nothing. */
#include "nullgpu.h"

#include <stdlib.h>
#include <string.h>

int nullgpu_handle(void *out);

/* ---- cuBLAS ---- */

#define PRODUCT(name)     \
  API int name(void) {    \
    nullgpu_launched(#name); \
    return 0;             \
  }
PRODUCT(cublasGemmEx)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasLtMatmul)

#define DESCRIPTION(name)       \
  API int name##Create(void **out) { \
    *out = calloc(1, 4096);     \
    return 0;                   \
  }                             \
  API int name##Destroy(void *it) { \
    free(it);                   \
    return 0;                   \
  }
DESCRIPTION(cublasLtMatmulDesc)
DESCRIPTION(cublasLtMatrixLayout)
DESCRIPTION(cublasLtMatmulPreference)

API int cublasCreate_v2(void **out) { return nullgpu_handle(out); }
API int cublasGetMathMode(void *handle, int *mode) { return *mode = 0; }
API int cublasGetPointerMode_v2(void *handle, int *mode) { return *mode = 0; }
API size_t cublasLtGetVersion(void) { return 130401; }
API int cublasLtMatmulDescInit_internal(void *description) { return 0; }
API int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d,
                                       void *preference, int wanted, void *results, int *found) {
  memset(results, 0, 64 + 8 + 4); /* one algorithm, its workspace and its state */
  *found = 1;
  return 0;
}

/* ---- NCCL ---- */

struct communicator {
  int size, rank;
};
struct identity {
  char bytes[128];
};

API int ncclGetUniqueId(struct identity *out) {
  memset(out, 7, sizeof *out);
  return 0;
}
API int ncclGetVersion(int *version) {
  *version = 23007;
  return 0;
}
API const char *ncclGetErrorString(int error) { return "error of the stand-in for a GPU"; }
API const char *ncclGetLastError(void *communicator) { return ncclGetErrorString(0); }
API int ncclCommInitRankConfig(struct communicator **out, int size, struct identity id, int rank, void *config) {
  *out = malloc(sizeof **out);
  **out = (struct communicator){size, rank};
  return 0;
}
API int ncclCommInitRank(struct communicator **out, int size, struct identity id, int rank) {
  return ncclCommInitRankConfig(out, size, id, rank, NULL);
}
API int ncclCommInitRankScalable(struct communicator **out, int size, int rank, int ids, void *all, void *config) {
  return ncclCommInitRankConfig(out, size, (struct identity){0}, rank, config);
}
API int ncclCommSplit(struct communicator *whole, int color, int key, struct communicator **out, void *config) {
  return ncclCommInitRankConfig(out, whole->size, (struct identity){0}, whole->rank, config);
}
API int ncclCommCount(struct communicator *all, int *size) {
  *size = all->size;
  return 0;
}
API int ncclCommUserRank(struct communicator *all, int *rank) {
  *rank = all->rank;
  return 0;
}
API int ncclCommGetAsyncError(void *communicator, int *error) { return *error = 0; }

#define COLLECTIVE(name)        \
  API int name(void) {          \
    nullgpu_count(COLLECTIVES); \
    nullgpu_log("nccl %s\n", #name); \
    return 0;                   \
  }
COLLECTIVE(ncclAllReduce)
COLLECTIVE(ncclReduce)
COLLECTIVE(ncclBroadcast)
COLLECTIVE(ncclBcast)
COLLECTIVE(ncclAllGather)
COLLECTIVE(ncclReduceScatter)
COLLECTIVE(ncclAlltoAll)
COLLECTIVE(ncclSend)
COLLECTIVE(ncclRecv)

/* ---- cuDNN: too old for torch's attention, which then takes its own kernels; cuDNN would ask the real driver ---- */

API size_t cudnnGetVersion(void) { return 8000; }
