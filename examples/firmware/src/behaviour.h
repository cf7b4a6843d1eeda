/* What goes wrong in a variant of the sample. build.sh sets SAMPLE_BEHAVIOUR and SAMPLE_BEHAVIOUR_NAME. */
#pragma once

#define HEALTHY 0       /* passes its self-test and confirms itself */
#define CRASH 1         /* executes an illegal instruction before it can confirm */
#define NEVER_CONFIRM 2 /* runs for ever, but never confirms */
#define LOSE_NETWORK 3  /* its driver does not come up, so it must not confirm */

#define SAMPLE_MARKER "FLOTA-LAB{behaviour=" SAMPLE_BEHAVIOUR_NAME "}"
