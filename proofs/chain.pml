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
#define ASLEEP 0            /* Sleeper.woken_ns */
#define WOKEN 1
#define BY_ITSELF 2
#define NOBODY 99

byte word[SLEEPERS];
bool asleep[SLEEPERS];      /* in the kernel */
bool is_member[SLEEPERS];   /* Walk.chain */
byte entry[SLEEPERS];       /* woken_ns of each member */
byte order[SLEEPERS];       /* of the chain: who is to be woken, in the order of their answers */
byte count;                 /* of those in it */
bool started;
byte next;                  /* place of who is to be woken next; Chain.next, once it has started */
byte awake = 1;             /* whoever is to start it */
byte holders = 1;
bool is_freed;
byte signals, gone;

inline chain_let_go()
{
    atomic { assert(!is_freed && holders > 0); holders--; is_freed = holders == 0 }
}

/* chain_wake: `woke` says whether it has woken somebody. */
inline wake()
{
    woke = false;
    atomic { assert(!is_freed); has_next = started && next < count };
    if
    :: !has_next
    :: else ->
#ifndef BUG_COUNTS_AFTERWARDS
        awake++;
#endif
        do
        :: atomic {                                             /* the exchange of chain.next */
            assert(!is_freed);
            if
            :: next < count -> who = order[next]; next++
            :: else -> who = NOBODY
            fi };
            if
            :: who == NOBODY -> break
            :: else
            fi;
            atomic {                                            /* the exchange of woken_ns, then futex_wake */
                if
                :: entry[who] == ASLEEP -> entry[who] = WOKEN; woke = true
#ifdef BUG_WAKES_WHO_HAS_GONE
                :: entry[who] == BY_ITSELF -> woke = true
#endif
                :: else
                fi
            };
            if
            :: woke ->
#ifdef BUG_COUNTS_AFTERWARDS
                awake++;
#endif
                asleep[who] = false;
                break
            :: else
            fi
        od;
#ifndef BUG_COUNTS_AFTERWARDS
        if
        :: !woke -> awake--
        :: else
        fi
#endif
    fi;
    who = NOBODY
}

/* The end of chain_go_on, and of chain_start: one who was counted is so no longer. */
inline go_on()
{
#ifdef BUG_NOBODY_WAKES_THE_NEXT
    atomic { was = 0; awake-- };
#else
    atomic { was = awake; awake-- };
#endif
    if
    :: was == 1 -> wake()
    :: else
    fi
}

proctype Sleeper(byte me)
{
    byte who, was;
    bool why, woke, has_next;
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
is_set:
    if                                                          /* chain_go_on */
    :: !is_member[me]
    :: else ->
        atomic { assert(!is_freed); was = entry[me]; entry[me] = BY_ITSELF };
        if
        :: was == ASLEEP
        :: was == WOKEN ->
#ifdef BUG_LETS_GO_FIRST
            chain_let_go();
#endif
            if                                                  /* at the gate it may wake one, more would be the same again */
            :: wake()
            :: true
            fi;
            go_on()
        fi;
        is_member[me] = false;
#ifndef BUG_LETS_GO_FIRST
        chain_let_go()
#endif
    fi;
away:                                                           /* it need not come back to the pipe */
    atomic { gone++ }
}

proctype Worker()
{
    byte k, who, was;
    bool woke, has_next;
    do
    :: k < SLEEPERS ->
        atomic {                                                /* c_answer, with the GIL */
            if
            :: word[k] == PARKED ->
                order[count] = k;
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
    atomic { assert(!is_freed); started = true };               /* chain_start, without the GIL */
    k = 0;
    do
    :: k < DEPTH -> wake(); k++
    :: else -> break
    od;
    go_on();
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
