/* The intrusive queue: any number of producers, one consumer at a time. See README.md. */

#ifndef PRODUCERS
#define PRODUCERS 2     /* each pushes */
#endif
#ifndef EACH
#define EACH 2          /* so many tickets */
#endif
#ifndef CONSUMERS
#define CONSUMERS 2     /* threads that pop, one at a time */
#endif
#define TICKETS (PRODUCERS * EACH)
#ifdef REUSE
#define POPS (TICKETS + 1)
#else
#define POPS TICKETS
#endif

#include "inbox.inc"

bool desk;              /* the station's mutex */
byte popped;
#ifdef REUSE
bool again;
#endif

proctype Producer(byte me)
{
    byte before, k;
    do
    :: k < EACH -> inbox_push(me, me * EACH + k); k++
    :: k == EACH -> break
    od
}

proctype Consumer()
{
    byte before, ticket, after;
    do
    :: atomic { !desk && popped < POPS -> desk = true };
        inbox_pop();
        if
        :: ticket != NULL -> popped++
        :: else
        fi;
        desk = false;
#ifdef REUSE
        /* A batch that goes back to the queue: ticket 0 is pushed once more, by the thread that had popped it. */
        if
        :: ticket == 0 && !again -> again = true; inbox_push(PRODUCERS - 1, 0)
        :: else
        fi;
#endif
        ticket = 0
    :: popped == POPS -> break
    od
}

init
{
    byte k;
    atomic {
        do
        :: k < PRODUCERS -> run Producer(k); k++
        :: k == PRODUCERS -> break
        od;
        k = 0;
        do
        :: k < CONSUMERS -> run Consumer(); k++
        :: k == CONSUMERS -> break
        od
    }
}

#ifdef LIVENESS
ltl all_come_out { <> (popped == POPS) }
#endif
