/* How one request ends, once, and how its caller learns of it. See README.md. */

#ifndef ENDS
#define ENDS 2              /* threads that want to end it: with an answer, an exception, PipeClosed */
#endif
#ifndef SIGNALS
#define SIGNALS 2           /* so often its wait ends by itself: EINTR, the slice of the main thread, a deadline */
#endif
#ifndef STRAY
#define STRAY 1             /* so often it is woken for nothing: a late wake-up for whoever had this memory before */
#endif

#define RUNNING 0           /* Walk.outcome; any other value says who has ended it */
#define CANCELLED 9

#define OPEN 0              /* Walk.word */
#define PARKED 1
#define SET 2

byte outcome;
byte word;
byte error;                 /* what the winner has written for the caller to read */
bool asleep;                /* in the kernel */
byte filed;                 /* done + failed + cancelled */
byte wakes;                 /* calls of futex_wake */
byte signals, stray;
bool caller_is_gone;

/* Walk.c_end, then what only its winner does. */
inline claim(me)
{
#ifdef BUG_OUTCOME_BY_STORE
    won = outcome == RUNNING;
    if
    :: won -> outcome = me
    :: else
    fi;
#else
    d_step {
        won = outcome == RUNNING;
        if
        :: won -> outcome = me
        :: else
        fi
    };
#endif
    if
    :: won -> filed++; assert(filed == 1)                       /* _count_out */
    :: else
    fi
}

/* word_set; `parked` is what it returns. */
inline word_set()
{
#ifdef BUG_SET_BY_STORE
    parked = word == PARKED;
    word = SET
#else
    d_step { parked = word == PARKED; word = SET }
#endif
}

inline wake()                                                   /* futex_wake */
{
    d_step { wakes++; assert(wakes == 1); asleep = false }
}

inline cancel()
{
    claim(CANCELLED);
    if
    :: won ->
        error = CANCELLED;
        word_set();
#ifndef BUG_CANCEL_IS_SILENT
        if
        :: parked -> wake()
        :: else
        fi
#endif
    :: else
    fi
}

proctype End(byte me)                                           /* finish_walk, fail_walk: then Turn.wake without the GIL */
{
    bool won, parked;
    claim(me);
    if
    :: won ->
#ifndef BUG_SET_FIRST
        error = me;
#endif
        word_set();
#ifdef BUG_SET_FIRST
        error = me;
#endif
        if
        :: parked -> wake()
        :: else
        fi
    :: else
    fi
}

proctype Cancel()                                               /* cancel_walk, by another thread than the one that waits */
{
    bool won, parked;
    cancel()
}

active proctype Caller()
{
    bool won, parked, why;
again:
    if                                                          /* c_wait */
    :: word == SET -> goto is_set
    :: else
    fi;
park:                                                           /* word_wait */
#ifdef BUG_PARK_BY_STORE
    if
    :: word == SET -> goto is_set
    :: else
    fi;
    word = PARKED;
#else
    atomic {
        if
        :: word == OPEN -> word = PARKED
        :: else
        fi;
        parked = word == PARKED
    };
    if
    :: parked -> parked = false
    :: else -> goto is_set
    fi;
#endif
    if
    :: why -> why = false; goto signal
    :: else
    fi;
    d_step {                                                    /* futex_wait */
        if
        :: word == PARKED -> asleep = true
        :: else
        fi
    };
    if
    :: !asleep
    :: d_step { asleep && signals < SIGNALS -> signals++; asleep = false; why = true }
    :: d_step { asleep && stray < STRAY -> stray++; asleep = false }
    fi;
    if
    :: word == SET -> goto is_set
    :: else -> goto park
    fi;
signal:                                                         /* PyErr_CheckSignals */
    if
    :: true -> goto again
    :: true ->                                                  /* it raises: the caller cancels, and goes */
        cancel();
        goto gone
    fi;
is_set:
    why = false;
    assert(outcome != RUNNING && error == outcome && filed == 1);
gone:
    caller_is_gone = true
}

init
{
    byte k = 1;
    atomic {
        do
        :: k <= ENDS -> run End(k); k++
        :: else -> break
        od;
        run Cancel()
    };
    caller_is_gone;                                             /* not an end state: nobody waits for ever */
end:
    timeout;
    assert(filed == 1 && outcome != RUNNING)
}

#ifdef LIVENESS
ltl the_caller_goes { <> caller_is_gone }
#endif
