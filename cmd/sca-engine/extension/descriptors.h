/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reconciler's threads have a table of file descriptors of their own. What the program does to all of
 * its descriptors, as daemons do that close them, does nothing to the reconciler's, and no forked child
 * inherits them.
 */
#ifndef SCA_DESCRIPTORS_H
#define SCA_DESCRIPTORS_H

/*
 * Gives the calling thread, and those that it starts from then on, a table of its own, with nothing but
 * /dev/null in the places of the standard streams: a copy of the program's pipes and sockets would keep
 * them open after the program closed them. Where a sandbox forbids it, the thread keeps the program's.
 */
void sca_descriptors_part(void);

#endif
