/* Single flight: of equal requests at a node with a cache one runs, and answers all. See README.md. */

#ifndef CALLERS
#define CALLERS 3           /* each with the same request, once */
#endif

#define NONE 255
#define NEW 0               /* a caller's request, and its Walk.outcome: */
#define WAITS 1
#define DONE 2
#define FAILED 3
#define GONE 4              /* cancelled, or its time is over */

#define NO_FLIGHT 0         /* of the visit of a caller: it leads one, which is ... */
#define ALOFT 1
#define LANDED 2

bool gil;
#define gil_take()  atomic { !gil -> gil = true }
#define gil_drop()  gil = false

byte state[CALLERS];
byte flight[CALLERS];
byte followed[CALLERS] = NONE;      /* whom a caller follows: it is in that one's Flight.followers */
byte begun[CALLERS];                /* how often the cache had been emptied before */
chan queue = [CALLERS] of { byte };
byte current = NONE;                /* ResultCache.flights: the one that equal requests follow */
bool is_kept;                       /* there is an answer */
bool is_old[CALLERS];               /* it has begun before the cache was emptied */
byte clears;                        /* ResultCache.generation */
byte running = NONE;                /* whose visit is in the backend */
byte runs;
bool has_failed;
byte gone;

/* is_dead: `dead`. Locals of the process: k, dead. */
inline look_if_dead(leader)
{
    d_step {
        dead = state[leader] != WAITS;
#ifndef BUG_FOLLOWERS_DO_NOT_COUNT
        k = 0;
        do
        :: k < CALLERS ->
            if
            :: followed[k] == leader && state[k] == WAITS -> dead = false
            :: else
            fi;
            k++
        :: else -> break
        od;
#endif
        k = 0
    }
}

inline close_flight(leader)
{
    d_step {
        flight[leader] = LANDED;
        if
        :: current == leader -> current = NONE
        :: else
        fi
    }
}

/* land with an answer, fail_flight with an error: the leader's, if it still waits, and its followers'. */
inline send_followers(leader, how)
{
    k = 0;
    do
    :: k < CALLERS ->
        if
        :: (k == leader || followed[k] == leader) && state[k] == WAITS ->
            state[k] = how;
#ifdef BUG_ERROR_IS_THE_LEADERS
            if
            :: how == FAILED && k != leader -> state[k] = WAITS
            :: else
            fi
#endif
        :: else
        fi;
        k++
    :: else -> break
    od;
    k = 0
}

proctype Caller(byte me)
{
    bool may_leave;
#ifdef CANCELS
    if
    :: may_leave = true
    :: may_leave = false
    fi;
#endif
    gil_take();                                                 /* look_up */
    state[me] = WAITS;
    if
    :: is_kept -> state[me] = DONE                              /* fill_in */
    :: else ->
        if
        :: current != NONE ->                                   /* _follow */
#ifndef BUG_DROPPED_IS_FOLLOWED
            assert(flight[current] == ALOFT);
#endif
            followed[me] = current
        :: else ->                                              /* _lead, then enqueue */
            flight[me] = ALOFT;
            begun[me] = clears;
            current = me;
            queue!me
        fi
    fi;
    gil_drop();
    if
    :: state[me] == DONE || state[me] == FAILED
    :: atomic { may_leave && state[me] == WAITS && !gil -> state[me] = GONE }
    fi;
    gone++
}

active proctype Worker()
{
    byte leader, k;
    bool dead, fails;
end:
    do
    :: queue?leader ->
        gil_take();
        look_if_dead(leader);
        if
        :: dead ->                                              /* note_dropped */
#ifdef BUG_DROPPED_IS_FOLLOWED
            flight[leader] = LANDED;
#else
            close_flight(leader);
#endif
            gil_drop()
        :: else ->
            assert(running == NONE);
            running = leader;
            runs++;
            gil_drop();                                         /* forward */
            if
            :: fails = false
#ifdef FAILS
            :: fails = true
#endif
            fi;
            gil_take();
            running = NONE;
            has_failed = has_failed || fails;
            if
            :: !fails && (begun[leader] == clears) ->                   /* keep_answer */
                is_kept = true;
                assert(!is_old[leader])
            :: else
            fi;
            close_flight(leader);
            if
            :: fails -> send_followers(leader, FAILED)
            :: else -> send_followers(leader, DONE)
            fi;
            gil_drop()
        fi
    od
}

#ifdef CLEARS
active proctype Clear()                                         /* ResultCache.c_renew */
{
    byte k;
    gil_take();
#ifndef BUG_CLEAR_KEEPS
    clears++;
#endif
    is_kept = false;
    current = NONE;
    d_step {
        do
        :: k < CALLERS -> is_old[k] = flight[k] == ALOFT; k++
        :: else -> break
        od
    };
    gil_drop()
}
#endif

init
{
    byte k;
    atomic {
        do
        :: k < CALLERS -> run Caller(k); k++
        :: else -> break
        od
    };
    gone == CALLERS;                                            /* not an end state: nobody waits for ever */
end:
    timeout;
    d_step {
        k = 0;
        do
        :: k < CALLERS ->
            assert(state[k] == DONE || state[k] == GONE || (state[k] == FAILED && has_failed));
            assert(flight[k] != ALOFT);
            k++
        :: else -> break
        od
    };
#ifndef FAILS
#ifndef CLEARS
#ifndef CANCELS
    assert(runs == 1)
#endif
#endif
#endif
}
