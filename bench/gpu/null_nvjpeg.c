/* nvJPEG and CUDA's driver that do nothing, for instructions.py: headers are read, and every batch is decoded at
   once. */
#include <stddef.h>

static char handle;
static int give(void** out) { *out = &handle; return 0; }

int nvjpegCreateEx(int backend, void* device, void* pinned, unsigned flags, void** out) { return give(out); }
int nvjpegDestroy(void* library) { return 0; }
int nvjpegJpegStateCreate(void* library, void** out) { return give(out); }
int nvjpegJpegStateDestroy(void* state) { return 0; }
int nvjpegDecodeBatchedInitialize(void* library, void* state, int count, int threads, int output) { return 0; }
int nvjpegDecodeBatched(void* library, void* state, void* sources, void* sizes, void* images, void* stream) { return 0; }

int nvjpegGetImageInfo(void* library, const unsigned char* data, size_t size, int* channels, int* sampling, int* widths,
                       int* heights)
{
    for (size_t at = 2; at + 9 < size; at += 2 + (data[at + 2] << 8 | data[at + 3]))
        if (data[at + 1] == 0xC0) {
            heights[0] = data[at + 5] << 8 | data[at + 6];
            widths[0] = data[at + 7] << 8 | data[at + 8];
            *channels = data[at + 9];
            *sampling = 2;
            return 0;
        }
    return 3;
}

int cuCtxGetStreamPriorityRange(int* least, int* greatest) { *least = *greatest = 0; return 0; }
int cuStreamCreateWithPriority(void** out, unsigned flags, int priority) { return give(out); }
int cuStreamQuery(void* stream) { return 0; }
int cuStreamSynchronize(void* stream) { return 0; }
int cuStreamDestroy_v2(void* stream) { return 0; }
int cuEventCreate(void** out, unsigned flags) { return give(out); }
int cuEventDestroy_v2(void* event) { return 0; }
int cuEventRecord(void* event, void* stream) { return 0; }
int cuStreamWaitEvent(void* stream, void* event, unsigned flags) { return 0; }
