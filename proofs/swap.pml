/* A swap: a station's old instance gives way to a new one, while requests come. See README.md. */

#ifndef REQUESTS
#define REQUESTS 2          /* each submitted by a thread of its own */
#endif
#ifndef CALLERS
#define CALLERS 0           /* so many of these threads run their request themselves, if a token is free */
#endif

#define OLD 0               /* tokens, instances, and workers that came with them */
#define NEW 1
#define CLOSER 2
#define THREADS 3           /* that wait on the workers' event count */
#define NONE 255
#define fence(me)  skip
#include "events.inc"

#define HELD 0              /* of a token */
#define FREE 1
#define LEAVING 2
#define LEFT 3
#define KEPT 4

byte token[2];
short idle = 1;
short queued;
byte wanted;
byte era;                   /* workers that came before it leave */
EventCount workers;
bool is_closed[2];          /* the instance */
byte answered;
bool is_switched, old_worker_left, is_over;

inline token_try(i)
{
    d_step {
        got = token[i] == FREE;
        if
        :: got -> token[i] = HELD; idle--
        :: else
        fi
    }
}

inline tokens_take()
{
    if
    :: idle <= 0
    :: else ->
        token_try(OLD);
        if
        :: got -> index = OLD
        :: else ->
            token_try(NEW);
            if
            :: got -> index = NEW
            :: else
            fi
        fi;
        got = false
    fi
}

/* token_release, then what c_release_token looks at. */
inline release_token(i)
{
    d_step {
        if
        :: token[i] == HELD -> idle++
        :: else
        fi;
        token[i] = token[i] + 1
    };
    if
    :: queued > 0 -> events_notify_one(workers, 0)
    :: else
    fi;
#ifndef BUG_RELEASE_IS_SILENT
    if
    :: wanted > 0 -> events_notify_all(workers, 0)
    :: else
    fi
#endif
}

inline notify_workers()                                         /* c_notify */
{
    if
    :: idle <= 0
    :: else ->
#ifdef BUG_WANTED_FIRST
        got = wanted > 0;
        if
        :: got -> got = false; events_notify_all(workers, 0)
        :: else -> events_notify_one(workers, 0)
        fi
#else
        events_notify_one(workers, 0);
        if
#ifdef BUG_NOTIFY_ONE
        :: false
#else
        :: wanted > 0 -> events_notify_all(workers, 0)
#endif
        :: else
        fi
#endif
    fi
}

/* token_retire; `got`: nobody holds it. */
inline token_retire(i)
{
#ifdef BUG_RETIRE_BY_STORE
    got = token[i] == HELD;
    if
    :: got -> token[i] = LEAVING
    :: token[i] == FREE -> token[i] = LEFT; idle--
    :: else
    fi;
    got = token[i] == LEFT
#else
    d_step {
        if
        :: token[i] == HELD -> token[i] = LEAVING
        :: token[i] == FREE -> token[i] = LEFT; idle--
        :: else
        fi;
        got = token[i] == LEFT
    }
#endif
}

inline run_batch(i)
{
    assert(!is_closed[i]);
    answered++;
    (i == NEW || answered == REQUESTS)                          /* the old batch takes as long as all others */
}

proctype Worker(byte me)
{
    byte index = NONE, k;
    bool got, leaves;
    if
    :: me == NEW -> is_switched                                 /* serve_once_told */
    :: else
    fi;
    do
    :: events_prepare(workers, me);                             /* _wait_for_batch, try_take */
        atomic {                                                /* the mutex is held */
            leaves = me < era;
            if
            :: !leaves && queued > 0 ->
                tokens_take();
                if
                :: index != NONE -> queued--
                :: else
                fi
            :: else
            fi
        };
        if
        :: leaves ->
            events_leave(workers, me);
#ifndef BUG_LEAVES_WITH_A_WAKE_UP
            notify_workers();
#endif
            break
        :: else
        fi;
        if
        :: index != NONE ->
            events_leave(workers, me);
            if
            :: queued > 0 -> notify_workers()
            :: else
            fi;
            run_batch(index);
            release_token(index);
            index = NONE
        :: is_over -> events_leave(workers, me); break
        :: else ->
            fall_asleep(workers, me);
            sleep_on(workers, me, is_over)
        fi
    od;
    if
    :: me == OLD -> old_worker_left = true
    :: else
    fi
}

proctype Submitter(bool runs_itself)
{
    byte index = NONE, k;
    bool got;
    if
    :: runs_itself -> tokens_take()                             /* token_for_caller */
    :: else
    fi;
    if
    :: index != NONE -> run_batch(index); release_token(index)
    :: else ->
        queued++;                                               /* c_push */
        notify_workers()
    fi
}

proctype Swap()                                          /* switch_stations, then _close_retired */
{
    byte k;
    bool got;
#ifdef BUG_RETIRE_BY_STORE
    token_retire(OLD);
    era = NEW;
#else
    atomic { token_retire(OLD); era = NEW };                    /* _retire_tokens: the mutex is held */
#endif
    got = false;
#ifdef BUG_CLOSES_AT_ONCE
    is_closed[OLD] = true;
#endif
    d_step {                                                    /* _open_tokens: token_hold */
        assert(token[NEW] == KEPT);
        token[NEW] = HELD
    };
    release_token(NEW);
    is_switched = true;
#ifndef BUG_SWITCH_IS_SILENT
    events_notify_all(workers, 0);
#endif
    wanted++;                                                   /* Station.retire */
    do
    :: events_prepare(workers, CLOSER);
        token_retire(OLD);
        if
        :: got -> events_leave(workers, CLOSER); break
        :: else
        fi;
        fall_asleep(workers, CLOSER);
        sleep_on(workers, CLOSER, false)
    od;
    wanted--;
    got = false;
    events_notify_all(workers, 0);
    is_closed[OLD] = true;                                      /* close_backends */
    old_worker_left                                             /* join_retired */
}

init
{
    byte k;
    token[OLD] = FREE;
    token[NEW] = KEPT;
    atomic {
        run Swap();
        run Worker(OLD);
        run Worker(NEW);
        do
        :: k < REQUESTS -> run Submitter(k < CALLERS); k++
        :: else -> break
        od
    };
    answered == REQUESTS && is_closed[OLD] && old_worker_left;  /* not an end state: nobody waits for ever */
    is_over = true;
end:
    timeout;
    assert(answered == REQUESTS && queued == 0);
    assert(token[OLD] == LEFT && token[NEW] == FREE && idle == 1)
}
