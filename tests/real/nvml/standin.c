/* A stand-in for libnvidia-ml.so.1 on machines without a GPU: what it says is in environment variables.
 *
 * STANDIN_GPUS   one GPU after the other, each as NAME|UUID|TOTAL_BYTES|RESERVED_BYTES; with ; between them
 * STANDIN_FAIL   CALL=CODE: this call returns that error instead, as in nvmlDeviceGetName=15; with ; between several
 * STANDIN_USED   a file, which is read anew each time: what is used on each GPU, in bytes, a line each. A line that says
 *                "fail" makes the call fail, and one that says "hang" makes it never return
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { char name[96], uuid[96]; unsigned long long total, reserved; } gpu;

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, UNKNOWN = 999, MEMORY_V2 = 0x02000028 };

static int failure(const char *call) {
    const char *rules = getenv("STANDIN_FAIL");
    size_t length = strlen(call);
    for (const char *at = rules; at != NULL && *at; at = strchr(at, ';') ? strchr(at, ';') + 1 : NULL)
        if (strncmp(at, call, length) == 0 && at[length] == '=') return atoi(at + length + 1);
    return SUCCESS;
}

static int find(unsigned index, gpu *found) {
    const char *at = getenv("STANDIN_GPUS");
    for (unsigned i = 0; at != NULL && *at; i++) {
        if (i == index)
            return sscanf(at, "%95[^|]|%95[^|]|%llu|%llu", found->name, found->uuid, &found->total, &found->reserved) == 4;
        at = strchr(at, ';') ? strchr(at, ';') + 1 : NULL;
    }
    return 0;
}

static gpu of(void *handle) {
    gpu found = {0};
    find((unsigned)(size_t)handle - 1, &found);
    return found;
}

static int read_used(void *handle, unsigned long long *used) {
    char line[64] = "";
    FILE *file = getenv("STANDIN_USED") ? fopen(getenv("STANDIN_USED"), "r") : NULL;
    *used = 0;
    if (file == NULL) return SUCCESS;
    for (size_t left = (size_t)handle; left > 0 && fgets(line, sizeof line, file) != NULL; left--) {}
    fclose(file);
    while (strncmp(line, "hang", 4) == 0) pause();
    *used = strtoull(line, NULL, 10);
    return strncmp(line, "fail", 4) == 0 ? UNKNOWN : SUCCESS;
}

#define FAIL_IF_TOLD(call) do { int code = failure(call); if (code) return code; } while (0)

const char *nvmlErrorString(int code) {
    static char text[64];
    snprintf(text, sizeof text, "stand-in error %d", code);
    return text;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; FAIL_IF_TOLD("nvmlInit"); return SUCCESS; }

int nvmlShutdown(void) { FAIL_IF_TOLD("nvmlShutdown"); return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    gpu ignored;
    FAIL_IF_TOLD("nvmlDeviceGetCount");
    for (*count = 0; find(*count, &ignored); (*count)++) {}
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    gpu ignored;
    FAIL_IF_TOLD("nvmlDeviceGetHandleByIndex");
    *handle = (void *)(size_t)(index + 1);
    return find(index, &ignored) ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetName(void *handle, char *text, unsigned size) {
    FAIL_IF_TOLD("nvmlDeviceGetName");
    snprintf(text, size, "%s", of(handle).name);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) {
    FAIL_IF_TOLD("nvmlDeviceGetUUID");
    snprintf(text, size, "%s", of(handle).uuid);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_v1 *memory) {
    FAIL_IF_TOLD("nvmlDeviceGetMemoryInfo");
    *memory = (memory_v1){.total = of(handle).total};
    return read_used(handle, &memory->used);
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *memory) {
    gpu found = of(handle);
    FAIL_IF_TOLD("nvmlDeviceGetMemoryInfo_v2");
    if (memory->version != MEMORY_V2) return INVALID_ARGUMENT;
    memory->total = found.total;
    memory->reserved = found.reserved;
    return read_used(handle, &memory->used);
}
