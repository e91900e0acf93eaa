/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fires the static probes that the engine has, as its test says on stdin, and answers each line:
 *
 *   hit CODE TIMES                     fires sca:hit so often, at two locations in turn
 *   patched TARGET CODE ORIGINAL       fires sca:patched
 *   reverted TARGET CODE ORIGINAL      fires sca:reverted
 *   badtarget CODE ORIGINAL            fires sca:patched with a target that is no address
 *   semaphores                         answers with the three semaphores
 *
 * A probe fires only while its semaphore is raised; the answer to a firing is how many did.
 */
#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define SEMAPHORE(name)                                                                            \
	__extension__ volatile unsigned short name __attribute__((unused, section(".probes")))
SEMAPHORE(sca_hit_semaphore);
SEMAPHORE(sca_patched_semaphore);
SEMAPHORE(sca_reverted_semaphore);
SEMAPHORE(other_thing_semaphore);

static int fire(const char *kind, const char *target, uint64_t code, uint64_t original)
{
	if (!strcmp(kind, "patched") && sca_patched_semaphore) {
		STAP_PROBE3(sca, patched, target, (void *)code, (void *)original);
		return 1;
	}
	if (!strcmp(kind, "reverted") && sca_reverted_semaphore) {
		STAP_PROBE3(sca, reverted, target, (void *)code, (void *)original);
		return 1;
	}
	return 0;
}

static int hit(uint64_t code, uint64_t times)
{
	int fired = 0;

	for (uint64_t i = 1; i <= times; i++) {
		if (!sca_hit_semaphore)
			continue;
		if (i % 2)
			STAP_PROBE3(sca, hit, "module:odd", (void *)code, i);
		else
			STAP_PROBE3(sca, hit, "module:even", (void *)code, i);
		fired++;
	}
	/* a probe of somebody else's */
	STAP_PROBE1(other, thing, 5);
	return fired;
}

int main(void)
{
	char line[2048], kind[16], target[1024];
	uint64_t a, b;

	setlinebuf(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		int answer = -1;

		if (sscanf(line, "hit %lx %lu", &a, &b) == 2)
			answer = hit(a, b);
		else if (sscanf(line, "badtarget %lx %lx", &a, &b) == 2)
			answer = fire("patched", (const char *)8, a, b);
		else if (sscanf(line, "%15s %1023s %lx %lx", kind, target, &a, &b) == 4)
			answer = fire(kind, target, a, b);
		if (answer >= 0)
			printf("%d\n", answer);
		else
			printf("%d %d %d\n", sca_hit_semaphore, sca_patched_semaphore,
			       sca_reverted_semaphore);
	}
	return 0;
}
