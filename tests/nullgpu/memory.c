/* Memory of the stand-in: pages of the host that nobody touches, so they cost nothing. */
#define _GNU_SOURCE
#include "nullgpu.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* What a context itself takes of a real card. */
static const size_t CONTEXT_BYTES = 600u << 20;

#define PIECES 65536
#define COPIED_BYTES 65536 /* larger copies move nothing */
static struct {
  char *start;
  size_t bytes;
  int device;
} pieces[PIECES];
static int piece_count;
static size_t used[MOST_DEVICES];

static int take(int device, size_t bytes) {
  if (used[device] + bytes + CONTEXT_BYTES > nullgpu_memory_bytes()) return 0;
  used[device] += bytes;
  nullgpu_contexts[device] = 1;
  return 1;
}

/* Addresses of a device, NULL where there are none left; the lock is held. */
static void *reserve(int device, size_t bytes) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, index = 0;
  char *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  while (index < piece_count && pieces[index].start) index++;
  if (start == MAP_FAILED || index == PIECES) return NULL;
  if (index == piece_count) piece_count++;
  pieces[index].start = start;
  pieces[index].bytes = bytes;
  pieces[index].device = device;
  return start;
}

API cudaError_t cudaMalloc(void **out, size_t bytes) {
  *out = NULL;
  pthread_mutex_lock(&lock);
  if (take(nullgpu_device, bytes) && !(*out = reserve(nullgpu_device, bytes))) used[nullgpu_device] -= bytes;
  pthread_mutex_unlock(&lock);
  return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}

/* The piece that holds an address, -1 for the host's memory; the lock is held. */
static int piece_of(const void *address) {
  for (int i = 0; i < piece_count; i++) {
    const char *start = pieces[i].start;
    if (start && (const char *)address >= start && (const char *)address < start + pieces[i].bytes) return i;
  }
  return -1;
}

static int device_of(const void *address) {
  pthread_mutex_lock(&lock);
  int piece = piece_of(address), device = piece < 0 ? -1 : pieces[piece].device;
  pthread_mutex_unlock(&lock);
  return device;
}

/* Give addresses up; returns their device, -1 for what is no piece's start. The lock is held. */
static int leave(void *address, size_t *bytes) {
  int piece = piece_of(address);
  if (piece < 0) return -1;
  *bytes = pieces[piece].bytes;
  munmap(address, *bytes);
  pieces[piece].start = NULL;
  return pieces[piece].device;
}

API cudaError_t cudaFree(void *address) {
  size_t bytes;
  pthread_mutex_lock(&lock);
  int device = leave(address, &bytes);
  if (device >= 0) used[device] -= bytes;
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

/* What the driver's calls for expandable segments need: addresses first, memory behind them later. */
API void *nullgpu_reserve(size_t bytes) {
  pthread_mutex_lock(&lock);
  void *start = reserve(nullgpu_device, bytes);
  pthread_mutex_unlock(&lock);
  return start;
}
API void nullgpu_leave(void *address) {
  size_t bytes;
  pthread_mutex_lock(&lock);
  leave(address, &bytes);
  pthread_mutex_unlock(&lock);
}
API int nullgpu_take(int device, size_t bytes) {
  pthread_mutex_lock(&lock);
  int taken = take(device, bytes);
  pthread_mutex_unlock(&lock);
  return taken;
}
API void nullgpu_give(int device, size_t bytes) {
  pthread_mutex_lock(&lock);
  used[device] -= bytes;
  pthread_mutex_unlock(&lock);
}

API cudaError_t cudaMallocAsync(void **out, size_t bytes, cudaStream_t stream) { return cudaMalloc(out, bytes); }
API cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) { return cudaFree(address); }
API cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned flags) {
  nullgpu_contexts[nullgpu_device] = 1; /* pinned memory belongs to a context */
  *out = malloc(bytes);
  return cudaSuccess;
}
API cudaError_t cudaMallocHost(void **out, size_t bytes) { return cudaHostAlloc(out, bytes, 0); }
API cudaError_t cudaFreeHost(void *address) {
  free(address);
  return cudaSuccess;
}
API cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned flags) { return cudaSuccess; }
API cudaError_t cudaHostUnregister(void *address) { return cudaSuccess; }
API cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  *total = nullgpu_memory_bytes();
  *free_bytes = *total - CONTEXT_BYTES - used[nullgpu_device];
  return cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *address) {
  int device = device_of(address);
  memset(out, 0, sizeof *out);
  out->type = device < 0 ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice;
  out->device = device < 0 ? 0 : device;
  out->devicePointer = device < 0 ? NULL : (void *)address;
  return cudaSuccess;
}

static cudaError_t copied(void *to, const void *from, size_t bytes) {
  int source = device_of(from), target = device_of(to);
  if (source >= 0 && target < 0) nullgpu_count(COPIES_TO_HOST);
  if (source < 0 && target >= 0) nullgpu_count(COPIES_TO_DEVICE);
  if (bytes <= COPIED_BYTES) memmove(to, from, bytes);
  else if (target < 0) memset(to, 0, bytes); /* the host reads defined numbers */
  return cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s) {
  return copied(to, from, bytes);
}
API cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
  nullgpu_waited("cudaMemcpy");
  return copied(to, from, bytes);
}
API cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t bytes, cudaStream_t stream) {
  return copied(to, from, bytes);
}
API cudaError_t cudaMemset(void *to, int value, size_t bytes) {
  if (bytes <= COPIED_BYTES) memset(to, value, bytes);
  return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
  return cudaMemset(to, value, bytes);
}
