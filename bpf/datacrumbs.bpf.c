/* The tracer: one object, a header for each concern. */
#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "datacrumbs.h"

char LICENSE[] SEC("license") = "GPL";

#include "task.h"
#include "file.h"
#include "limits.h"
#include "profile.h"
#include "emit.h"
#include "arguments.h"
#include "syscalls.h"
#include "stack.h"
#include "user.h"
#include "usdt.h"
#include "subject.h"
#include "kernel_functions.h"
#include "points.h"
#include "uring.h"
#include "who.h"
