// SPDX-License-Identifier: Apache-2.0
#include "numbers.h"

__attribute__((visibility("default"))) struct sca_engine sca_engine = {
	.magic = SCA_ENGINE_MAGIC,
	.abi = SCA_ENGINE_ABI,
	.count = SCA_NUMBERS,
};

const char *const sca_number_names[SCA_NUMBERS] = {
	[SCA_N_TARGETS] = "targets",
	[SCA_N_PATCHED] = "patched",
	[SCA_N_PENDING] = "pending",
	[SCA_N_UNRESOLVED] = "unresolved",
	[SCA_N_HOOKS] = "hooks",
	[SCA_N_UPDATES] = "updates",
	[SCA_N_UPDATES_REFUSED] = "updates_refused",
	[SCA_N_PATCHES] = "patches",
	[SCA_N_REVERTS] = "reverts",
	[SCA_N_FAILURES] = "failures",
	[SCA_N_IMPORTS] = "imports",
	[SCA_N_IMPORTS_LATE] = "imports_late",
	[SCA_N_HEAP_WALKS] = "heap_walks",
	[SCA_N_TURNS] = "turns",
	[SCA_N_TURN_NS] = "turn_ns",
	[SCA_N_TURN_MAX_NS] = "turn_max_ns",
	[SCA_N_LOG_LINES_DROPPED] = "log_lines_dropped",
};

const char *const sca_engine_states[] = {
	[SCA_ENGINE_OFF] = "off",         [SCA_ENGINE_STARTING] = "starting",
	[SCA_ENGINE_RUNNING] = "running", [SCA_ENGINE_REFUSED] = "refused",
	[SCA_ENGINE_STOPPED] = "stopped", [SCA_ENGINE_HALTED] = "halted",
};
