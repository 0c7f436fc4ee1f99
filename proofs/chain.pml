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

#define OPEN 0              /* Walk.word */
#define PARKED 1
#define SET 2
#define NOBODY 99

byte word[SLEEPERS];
bool asleep[SLEEPERS];      /* in the kernel */
bool is_member[SLEEPERS];   /* Walk.chain */
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
park:                                                           /* word_wait, without the GIL */
    atomic {
        if
        :: word[me] == OPEN -> word[me] = PARKED
        :: else
        fi
    };
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
#ifndef BUG_STAYS_PARKED
    atomic {                                                    /* word_unpark, with the GIL */
        if
        :: word[me] == PARKED -> word[me] = OPEN
        :: else -> goto is_set
        fi
    };
#endif
    if                                                          /* a signal's handler runs */
    :: goto park
    :: true -> goto away                                        /* it takes for ever, or raises */
    fi;
is_set:                                                         /* wait_for_answer */
    if
    :: is_member[me] -> leave(me)
    :: else
    fi;
away:                                                           /* it need not come back to the pipe */
    atomic { gone++ }
}

proctype Worker()
{
    byte k, end;
    do
    :: k < SLEEPERS ->
        atomic {                                                /* c_answer, with the GIL */
            if
            :: word[k] == PARKED ->
                sleepers[count] = k;
                count++;
                holders++;
                is_member[k] = true
            :: else
            fi;
            word[k] = SET
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
