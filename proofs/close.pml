/* close(): with requests in flight, nothing is lost, nobody sleeps for ever, all threads leave. See README.md. */

#ifndef WORKERS
#define WORKERS 1
#endif
#ifndef CALLERS
#define CALLERS 1           /* each calls the pipe once */
#endif
#ifndef SUBMITTERS
#define SUBMITTERS 0        /* each queues one request and goes */
#endif
#ifndef CLOSERS
#define CLOSERS 1
#endif
#ifndef NODES
#define NODES 1             /* a request runs so often here: nodes of one graph may share a station */
#endif
#define TICKETS (CALLERS + SUBMITTERS)
#define THREADS (WORKERS + TICKETS + CLOSERS)
#define GIL
#ifdef TIMEOUT
#define MAY_END true        /* close(timeout): any wait may last until the deadline */
#else
#define MAY_END false
#endif

#include "station.inc"

#define NEW 0               /* outcome: refused ones stay NEW */
#define RUNNING 1
#define DONE 2
#define FAILED 3
#define CANCELLED 4

byte outcome[TICKETS];
byte left[TICKETS] = NODES;
byte in_flight;             /* under the GIL, as: */
bool closing, gave_up;
EventCount drained;
bool close_lock;
bool retired[INSTANCES];
bool has_hung;              /* a batch never returns; its thread is left behind */
byte workers_left = WORKERS, callers_left = TICKETS, closers_left = CLOSERS;

/* c_end and _count_out, of a request that is still running. GIL. */
inline end_walk(me, t, how)
{
    d_step { assert(outcome[t] == RUNNING); outcome[t] = how };
    in_flight--;
    if
    :: closing && in_flight == 0 -> events_notify_all(drained, me)
    :: else
    fi
}

#ifdef BUG_QUEUE_DEAD
#define is_dead(t)  false
#else
#define is_dead(t)  (outcome[t] != RUNNING)
#endif

/* run_batch with the GIL let go by the backend, and advance: `batch` becomes what goes on to a next node. */
inline run_batch(me)
{
    gil_drop();
    if
    :: true -> gil_take()
#ifdef HANG
    :: atomic { !has_hung -> has_hung = true };
end_hung:
        false
#endif
    fi;
    do
    :: i < TICKETS ->
        if
        :: (batch & (1 << i)) != 0 && left[i] > 1 && !is_dead(i) -> left[i]--
        :: (batch & (1 << i)) != 0 && left[i] > 1 && is_dead(i) -> batch = batch & ~(1 << i)
        :: (batch & (1 << i)) != 0 && left[i] == 1 ->
            batch = batch & ~(1 << i);
            if
            :: outcome[i] == RUNNING -> end_walk(me, i, DONE)
            :: else
            fi
        :: else
        fi;
        i++
    :: else -> break
    od;
    i = 0
}

/* enqueue_all: what is in `batch`. */
inline queue_batch(me)
{
    do
    :: i < TICKETS ->
        if
        :: (batch & (1 << i)) != 0 && !is_dead(i) -> push(me, i); notify_workers(me)
        :: else
        fi;
        i++
    :: else -> break
    od;
    atomic { i = 0; batch = 0 }
}

proctype Worker(byte me)
{
    LOCALS;
    do
    :: true ->
        events_prepare(workers, me);                        /* _wait_for_batch */
        try_take(me, false);
        verdict = WAIT;
        if
        :: batch != 0 ->
            events_leave(workers, me);
            if
            :: queued > 0 -> notify_workers(me)
            :: else
            fi;
            gil_take();                                     /* _serve_hold */
            do
            :: true ->
                run_batch(me);
                queue_batch(me);
                if
                :: queued == 0 -> break
                :: else -> try_take(me, true)
                fi;
                verdict = WAIT;
                if
                :: batch == 0 -> break
                :: else
                fi
            od;
            release_token(me);
            gil_drop()
        :: else ->
            got = life == CLOSING;
#ifndef BUG_LEAVE_UNSEEN
            if
            :: got -> got = queued == 0
            :: else
            fi;
#endif
            if
            :: got -> events_leave(workers, me); break
            :: else -> fall_asleep(workers, me); sleep_on(workers, me, false)
            fi
        fi
    od;
    workers_left--
}

proctype Request(byte me; byte t; bool waits)
{
    LOCALS;
    gil_take();                                             /* entry_for, admit */
    if
    :: closing -> gil_drop(); goto gone
    :: else -> in_flight++; outcome[t] = RUNNING
    fi;
    batch = 1 << t;
    if
    :: waits ->                                             /* run_ready */
        do
        :: batch != 0 && !is_dead(t) ->
            if
            :: queued > 0                                   /* token_for_caller */
            :: else -> take_token()
            fi;
            if
            :: index == NONE -> queue_batch(me)
            :: else -> run_batch(me); release_token(me)
            fi
        :: else -> break
        od
    :: else -> queue_batch(me)
    fi;
    batch = 0;
    gil_drop();
    outcome[t] != RUNNING;                                  /* told: see outcome.pml */
gone:
    callers_left--
}

#ifdef CANCEL
/* cancel_walk of any request at any time: a future's owner, or a caller that was interrupted; or another branch of the
 * request has failed. What still runs of it may run on. */
active proctype Cancel()
{
    byte k, t;
    do
    :: t < TICKETS - 1 -> t++
    :: break
    od;
end:
    outcome[t] != NEW;
    gil_take();
    if
    :: outcome[t] == RUNNING -> end_walk(NONE, t, CANCELLED)
    :: else
    fi;
    gil_drop()
}
#endif

proctype Closer(byte me)
{
    LOCALS;
    bool first, is_drained;
    gil_take();                                             /* _refuse_new */
    first = !closing;
    closing = true;
    if
    :: first ->
        life = DRAINING;
        events_notify_all(workers, me)
    :: else
    fi;
    do                                                      /* _wait_drained */
    :: true ->
        events_prepare(drained, me);
        if
        :: in_flight == 0 -> events_leave(drained, me); is_drained = true; break
        :: else
        fi;
        if
        :: late -> events_leave(drained, me); break
        :: else
        fi;
        gil_drop();
        fall_asleep(drained, me);
        sleep_on(drained, me, MAY_END);
        late = MAY_END;
        gil_take()
    od;
    gil_drop();
    atomic { !close_lock -> close_lock = true };
    gil_take();
    if
    :: !is_drained ->                                       /* _fail_rest */
        gave_up = true;
        do
        :: i < TICKETS ->
            if
            :: outcome[i] == RUNNING -> end_walk(me, i, FAILED)
            :: else
            fi;
            i++
        :: else -> break
        od;
        i = 0
    :: else
    fi;
#ifdef DEAD_STAY_QUEUED
    if
    :: is_drained -> goto is_empty
    :: else
    fi;
#endif
    do                                                      /* fail_queued: of those that were cancelled, too */
    :: true ->
        gil_drop();
        atomic { !desk -> desk = true };
        drain_inbox();
        size = TICKETS;
        take_staged();
        desk = false;
        gil_take();
        if
        :: batch == 0 -> break
        :: else -> batch = 0
        fi
    od;
#ifdef DEAD_STAY_QUEUED
is_empty:
#endif
    gil_drop();
#ifdef BUG_NOTIFY_BEFORE_CLOSING
    events_notify_all(workers, me);
    life = CLOSING;
#else
    life = CLOSING;                                         /* _close_stations */
    events_notify_all(workers, me);
#endif
    if                                                      /* join_threads */
    :: workers_left == 0
    :: MAY_END
    fi;
    late = false;
    do                                                      /* close_backends */
    :: i < INSTANCES && !retired[i] ->
        gil_take();
        do                                                  /* retire */
        :: true ->
            events_prepare(workers, me);
            try_token(i);
            if
            :: got -> got = false; retired[i] = true; events_leave(workers, me); break
            :: else
            fi;
            if
            :: late -> events_leave(workers, me); break
            :: else
            fi;
            gil_drop();
            fall_asleep(workers, me);
            sleep_on(workers, me, MAY_END);
            late = MAY_END;
            gil_take()
        od;
        gil_drop();
        i++
    :: i < INSTANCES && retired[i] -> i++
    :: else -> break
    od;
    i = 0;
    close_lock = false;
    closers_left--
}

init
{
    byte m, t;
    atomic {
        do
        :: m < WORKERS -> run Worker(m); m++
        :: else -> break
        od;
        do
        :: t < TICKETS -> run Request(m, t, t < CALLERS); m++; t++
        :: else -> break
        od;
        do
        :: m < THREADS -> run Closer(m); m++
        :: else -> break
        od;
        m = 0;
        t = 0
    };
    /* Not an end state: whoever has not left now, never will. A hung batch keeps its own thread, and one caller. */
    closers_left == 0 && workers_left + callers_left <= has_hung;
end:
    timeout;
    assert(workers_left + callers_left <= has_hung && in_flight == 0);
    /* Nothing is left in the queue, which would keep it, and its pipe, for ever. */
    assert(empty(line) && empty(staged) && queued == 0)
}
