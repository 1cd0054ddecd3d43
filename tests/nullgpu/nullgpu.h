/* What the files of the stand-in for a GPU share. */
#pragma once
#include <stddef.h>

#define API __attribute__((visibility("default")))
#define MOST_DEVICES 16

enum counter { LAUNCHES, WAITS, COPIES_TO_HOST, COPIES_TO_DEVICE, COLLECTIVES, COUNTERS };

void nullgpu_count(enum counter counter);
void nullgpu_launched(const char *kernel);
void nullgpu_log(const char *format, ...);
