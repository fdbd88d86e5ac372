/*
 * How long block devices took for each request, whoever asked for it: from handing it to the
 * driver to its completion. In the trace, `ret` is the device (major << 20 | minor), `offset`
 * and `size` are in bytes; pid and tid are 0, because requests are often handed over by some
 * thread of the kernel.
 */
struct request_key {
	u64 sector;
	u64 device;
};

struct issued {
	u64 ts;
	u32 bytes;
	u16 func;
};

BPF_HASH(requests, struct request_key, struct issued, 65536);

TRACEPOINT_PROBE(block, block_rq_issue)
{
	struct request_key key = {args->sector, args->dev};
	struct issued issued = {bpf_ktime_get_ns(), args->bytes};
	char kind = args->rwbs[0];

	if (kind == 'F' && args->rwbs[1] == 'W') /* flush first, then write */
		kind = 'W';
	switch (kind) {
	case 'R':
		issued.func = DC_FUNCTION(read_request);
		break;
	case 'W':
		issued.func = DC_FUNCTION(write_request);
		break;
	default:
		issued.func = DC_FUNCTION(other_request);
	}
	requests.update(&key, &issued);
	return 0;
}

TRACEPOINT_PROBE(block, block_rq_complete)
{
	struct request_key key = {args->sector, args->dev};
	struct issued *issued = requests.lookup(&key);
	struct dc_event event = {};

	if (!issued)
		return 0;
	event.ts = issued->ts;
	event.dur = bpf_ktime_get_ns() - issued->ts;
	event.offset = key.sector * 512;
	event.size = issued->bytes;
	event.ret = key.device;
	event.func = issued->func;
	event.fd = -1;
	dc_emit(&event);
	requests.delete(&key);
	return 0;
}
