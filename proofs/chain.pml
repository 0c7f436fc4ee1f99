/* How callers whose answers are there are woken, a few at a time, and none is forgotten. See README.md. */

#ifndef SLEEPERS
#define SLEEPERS 3
#endif
#ifndef DEPTH
#define DEPTH 1             /* so many are on their way to the GIL at once */
#endif
#ifndef SIGNALS
#define SIGNALS 2           /* so often a wait ends by itself: EINTR, the slice of the main thread, a deadline */
#endif

#define PARKED 1            /* Walk.word */
#define SET 2
#define NOBODY 99

byte word[SLEEPERS];
bool asleep[SLEEPERS];      /* in the kernel */
bool is_member[SLEEPERS];   /* Walk.chain */
bool has_ended[SLEEPERS];   /* its caller has given the walk up, before there was an answer */
byte sleepers[SLEEPERS];    /* of the chain, in the order of their answers */
byte count;
byte credits;               /* with `started`, one word */
bool started;
byte holders = 1;
bool is_freed;
byte signals, gone;

inline chain_let_go()
{
    atomic { assert(!is_freed && holders > 0); holders--; is_freed = holders == 0 }
}

inline futex_wake(who)
{
    asleep[who] = false
}

/* chain_leave: `credit` is the first of the one or two that it gives. */
inline leave(me)
{
    if                                                          /* chain_awake: it was woken soon, or slowly */
    :: given = 1
    :: given = 2
    fi;
    atomic {
        assert(is_member[me] && !is_freed);
        is_member[me] = false;
        credit = NOBODY;
        if
        :: started -> credit = credits
        :: else
        fi;
#ifdef BUG_EARLY_LEAVE_GIVES_NOTHING
        if
        :: started -> credits = credits + given
        :: else
        fi
#else
        credits = credits + given
#endif
    };
#ifdef BUG_LETS_GO_FIRST
    chain_let_go();
#endif
    do
    :: given > 0 && credit < count -> atomic { assert(!is_freed); futex_wake(sleepers[credit]) }; credit++; given--
    :: else -> break
    od;
#ifndef BUG_LETS_GO_FIRST
    chain_let_go()
#endif
}

proctype Sleeper(byte me)
{
    byte credit, given;
    bool why;
again:
    atomic {                                                    /* futex_wait */
        if
        :: word[me] == PARKED -> asleep[me] = true
        :: else
        fi
    };
    if
    :: !asleep[me]
    :: atomic { asleep[me] && signals < SIGNALS -> signals++; asleep[me] = false; why = true }
    fi;
    if
    :: word[me] == SET -> goto is_set
    :: word[me] != SET && !why -> goto again
    :: word[me] != SET && why -> why = false
    fi;
    if                                                          /* wait_for_answer looks at signals and the deadline */
    :: goto again
    :: true
    fi;
    atomic {                                                    /* expire_walk, cancel_walk, under the GIL */
        if
        :: !is_member[me] -> has_ended[me] = true
        :: else
        fi
    };
    if
    :: has_ended[me] -> goto away                               /* nobody answers it any more */
    :: else
    fi;
#ifdef BUG_GIVEN_UP_STAYS
    goto away;
#endif
is_set:                                                         /* c_wait, wait_for_answer; Walk.__dealloc__ if it gave up */
    leave(me);
away:                                                           /* it need not come back to the pipe */
    atomic { gone++ }
}

proctype Worker()
{
    byte k, end;
    do
    :: k < SLEEPERS ->
        atomic {                                                /* c_answer, under the GIL */
            if
            :: !has_ended[k] ->
                sleepers[count] = k;
                count++;
                holders++;
                is_member[k] = true;
                word[k] = SET
            :: else
            fi
        };
        k++
    :: else -> break
    od;
    atomic {                                                    /* chain_start, without the GIL */
        assert(!is_freed);
#ifdef BUG_START_FORGETS_WHO_LEFT
        end = DEPTH;
#else
        end = credits + DEPTH;
#endif
        credits = credits + DEPTH;
        started = true;
        if
        :: end > count -> end = count
        :: else
        fi
    };
    k = 0;
    do
    :: k < end -> atomic { assert(!is_freed); futex_wake(sleepers[k]) }; k++
    :: else -> break
    od;
    chain_let_go()
}

init
{
    byte k;
    atomic {
        do
        :: k < SLEEPERS -> word[k] = PARKED; run Sleeper(k); k++
        :: else -> break
        od;
        run Worker()
    };
    gone == SLEEPERS;                                           /* not an end state: nobody sleeps for ever */
end:
    timeout;
    assert(is_freed)
}
