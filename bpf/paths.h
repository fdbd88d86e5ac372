/*
 * Path rules: is a file below one of the directories to include, or to exclude?
 *
 * Decided once for each file and each name, when it is first seen. A file's record has its
 * path's parts from the leaf up, each ended by NUL, and a rule has that form too: the file is
 * below the rule's directory if its parts end with those of the rule.
 */
#pragma once

struct judging {
	struct dc_string *record;
	struct sight sight;
	__u32 rule, of_text, of_rule; /* where to compare */
	bool names, equal;
};

static long same_byte(__u64 i, struct judging *judging)
{
	const volatile struct dc_rule *rule = &config.rules[judging->rule & (DC_RULES - 1)];
	__u32 at = (judging->of_rule + i) & (DC_RULE_MAX - 1);
	char one = judging->names ? rule->names[at] : rule->path[at];

	judging->equal = one == judging->record->text[(judging->of_text + i) & (DC_TEXT_MAX - 1)];
	return !judging->equal;
}

static __always_inline bool same(struct judging *judging, __u32 count)
{
	judging->equal = true;
	bpf_loop(count, same_byte, judging, 0);
	return judging->equal;
}

static __always_inline int bit_of(__u32 rule)
{
	return rule < config.includes ? INCLUDED : EXCLUDED;
}

static __always_inline bool wanted(int bits)
{
	return !(bits & EXCLUDED) && (!config.includes || (bits & INCLUDED));
}

static long judge_file_by(__u64 rule, struct judging *judging)
{
	__u32 length = config.rules[rule & (DC_RULES - 1)].length;
	__u32 has = judging->record->length;
	__u32 shorter = length < has ? length : has;
	char *text = judging->record->text;

	judging->rule = rule;
	judging->of_text = has - shorter;
	judging->of_rule = length - shorter;
	if (!same(judging, shorter))
		return 0;
	if (length < has && length && text[(has - length - 1) & (DC_TEXT_MAX - 1)])
		return 0; /* ends within a name: /a/xb is not below /a/b, nor /b below /a/b */
	if (length <= has)
		judging->sight.bits |= bit_of(rule);
	else if (!config.rules[rule & (DC_RULES - 1)].names[(length - has - 1) & (DC_RULE_MAX - 1)])
		judging->sight.above |= 1U << (rule & (DC_RULES - 1));
	return 0;
}

/* A file, by its record. One whose path is not known up to the root is included. */
static __always_inline void judge_path(struct dc_string *record, struct sight *sight)
{
	struct judging judging = {.record = record, .names = true};

	bpf_loop(config.rules_used, judge_file_by, &judging, 0);
	*sight = judging.sight;
	sight->length = record->length;
	if (record->what & 2)
		sight->bits = INCLUDED;
}

static long judge_name_by(__u64 rule, struct judging *judging)
{
	__u32 length = config.rules[rule & (DC_RULES - 1)].length;
	__u32 from = judging->sight.length + 1; /* what follows the slash */

	if (!(judging->sight.above & (1U << (rule & (DC_RULES - 1)))))
		return 0;
	judging->rule = rule;
	judging->of_rule = from;
	__u32 count = length < from ? 0 : length - from;
	if (!same(judging, count))
		return 0;
	char next = judging->record->text[(judging->of_text + count) & (DC_TEXT_MAX - 1)];
	if (!next || next == '/' || !length)
		judging->sight.bits |= bit_of(rule);
	return 0;
}

/* A name, by the directory it starts at and the text as the program gave it. */
static __always_inline void judge_name(struct dc_string *record, struct sight *sight)
{
	struct judging judging = {.record = record};
	__u64 base = record->base;
	char *text = record->text;

	if (text[0] == '/') {
		judging.sight.above = ~0U;
		judging.of_text = 1;
	} else {
		struct sight *start = bpf_map_lookup_elem(&announced, &base);
		if (start)
			judging.sight = *start;
		else
			judging.sight.bits = INCLUDED;
		judging.of_text = text[0] == '.' && text[1] == '/' ? 2 : 0;
	}
	bpf_loop(config.rules_used, judge_name_by, &judging, 0);
	sight->bits = judging.sight.bits & (INCLUDED | EXCLUDED);
}
