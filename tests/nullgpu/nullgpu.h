/* What the files of the stand-in for a GPU share. */
#pragma once
#include <stddef.h>

#define API __attribute__((visibility("default")))
#define MOST_DEVICES 16

enum counter { LAUNCHES, WAITS, COPIES_TO_HOST, COPIES_TO_DEVICE, COLLECTIVES, COUNTERS };

extern __thread int nullgpu_device;          /* of the calling thread */
extern int nullgpu_contexts[MOST_DEVICES];   /* whether this process has one on a device */

size_t nullgpu_memory_bytes(void);
int nullgpu_waited(const char *call);
void nullgpu_count(enum counter counter);
void nullgpu_launched(const char *kernel);
void nullgpu_log(const char *format, ...);
