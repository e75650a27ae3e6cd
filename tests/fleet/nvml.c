/* Stands in for libnvidia-ml.so.1: two cards, the first with one MIG slice, as the file named by
 * $FAKE_NVML says ("hang" or "none" in it). Layouts are those of nvml.h 12. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, sub; char name[32]; } pci_t;

static char cards[3];
static const char *uuids[] = {"GPU-0000aaaa", "GPU-0000bbbb", "MIG-0000cccc"};

static int mode(void) {
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    int c = file ? fgetc(file) : 'n';
    if (file) fclose(file);
    return c;
}
int nvmlInitWithFlags(unsigned flags) { if (mode() == 'h') pause(); return mode() == 'n' ? 9 : 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int e) { return e == 9 ? "Driver Not Loaded" : "Not Supported"; }
int nvmlSystemGetDriverVersion(char *text, unsigned n) { strcpy(text, "550.1"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **card) { *card = &cards[i]; return 0; }
int nvmlDeviceGetUUID(void *card, char *text, unsigned n) {
    strcpy(text, uuids[(char *)card - cards]); return 0;
}
int nvmlDeviceGetName(void *card, char *text, unsigned n) { strcpy(text, "Tester 80GB"); return 0; }
int nvmlDeviceGetMemoryInfo(void *card, memory_t *m) {
    m->total = 80ULL << 30; m->used = 8ULL << 30; m->free = 72ULL << 30; return 0;
}
int nvmlDeviceGetUtilizationRates(void *card, utilization_t *u) {
    u->gpu = 25; u->memory = 1; return card == &cards[1] ? 3 : 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void *card, unsigned *n) { *n = card == &cards[0] ? 7 : 0; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *card, unsigned i, void **part) {
    *part = &cards[2]; return i == 0 ? 0 : 6;
}
int nvmlDeviceGetPciInfo_v3(void *card, pci_t *p) { strcpy(p->name, "00000000:FF:1F.7"); return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned *n, process_t *out) {
    if (!out || *n < 1) { *n = 1; return card == &cards[0] ? 7 : 0; }
    *n = card == &cards[0]; out[0].pid = 42; out[0].used = 1ULL << 30; return 0;
}
