/* The event count with queued, idle and the tokens: nobody sleeps while there is something to do (E4). See README.md. */

#ifndef WORKERS
#define WORKERS 1
#endif
#ifndef CALLERS
#define CALLERS 0           /* each calls the pipe, for one ticket after the other */
#endif
#ifndef SUBMITTERS
#define SUBMITTERS 0        /* each queues its tickets, and notifies once */
#endif
#ifndef STEPPERS
#define STEPPERS 0          /* each waits for a token, and runs once */
#endif
#ifndef EACH
#define EACH 1              /* tickets a caller or submitter */
#endif
#define TICKETS ((CALLERS + SUBMITTERS) * EACH)
#define THREADS (WORKERS + CALLERS + SUBMITTERS + STEPPERS)
#define ALL ((1 << TICKETS) - 1)

#include "station.inc"

byte answered;              /* tickets, as bits */
byte hung;                  /* those whose batch never returns */
bool has_hung;
#ifdef FOREVER
bool waits_0;               /* ticket 0 has been queued, and not been answered */
#endif
byte steppers_left = STEPPERS;

/* Run `batch` in an instance. With HANG one batch may not come back, and holds its token for ever. */
inline run_batch()
{
    gil_drop();
    if
    :: true -> gil_take(); d_step { assert((answered & batch) == 0); answered = answered | batch; batch = 0 }
#ifdef HANG
    :: atomic { !has_hung -> has_hung = true; hung = batch };
end_hung:
        false
#endif
    fi
}

#ifdef COLLECT
/* The deadline is far: it comes when nothing else can happen. Then a full batch must not have waited for it. */
inline sleep_until_deadline(me)
{
    if
    :: workers.state[me] != ASLEEP
    :: d_step { timeout -> assert(queued < MAX || idle <= 0); workers.state[me] = RAISED; late = true }
    fi;
    atomic { workers.waiters--; workers.state[me] = OUT }
}
#endif

proctype Worker(byte me)
{
    LOCALS;
#ifdef BOUND
    only = me;                                              /* thread_bound */
#endif
    do
    :: true ->
        events_prepare(workers, me);                        /* _wait_for_batch */
        try_take(me, false);
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
                run_batch();
                if
                :: queued == 0 -> break
                :: else -> try_take(me, true)
                fi;
                if
                :: batch == 0 -> break
                :: else
                fi
            od;
            verdict = WAIT;
            release_token(me);
            gil_drop()
#ifdef COLLECT
        :: batch == 0 && verdict == WAIT_UNTIL ->
            verdict = WAIT;
            collecting++;
            fall_asleep(workers, me);
            sleep_until_deadline(me);
            collecting--
        :: batch == 0 && verdict != WAIT_UNTIL ->
#else
        :: else ->
#endif
            verdict = WAIT;
            fall_asleep(workers, me);
end_asleep: sleep_on(workers, me, false)                    /* may be the end, if there is nothing to do: see init */
        fi
    od
}

#if CALLERS
proctype Caller(byte me; byte first)
{
    LOCALS;
    byte t = first;
    do
    :: t < first + EACH ->
        gil_take();                                         /* run_ready */
#ifndef BOUND
        if
        :: queued > 0                                       /* token_for_caller */
        :: else -> take_token()
        fi;
#endif
        if
        :: index != NONE -> batch = 1 << t; run_batch(); release_token(me)
        :: else ->
            push(me, t);
#ifndef BUG_NOTIFY_FIRST
            notify_workers(me)
#endif
        fi;
#ifdef FOREVER
        waits_0 = waits_0 || t == 0;
#endif
        gil_drop();
#ifdef FOREVER
        atomic { (answered & (1 << t)) != 0 -> answered = answered & ~(1 << t); waits_0 = waits_0 && t != 0; t++ };
        if
        :: t == first + EACH -> t = first
        :: else
        fi
#else
        ((answered | hung) & (1 << t)) != 0;                /* c_wait */
        t++
#endif
    :: else -> break
    od
}
#endif

#if SUBMITTERS
proctype Submitter(byte me; byte first)
{
    LOCALS;
    byte t = first;
    gil_take();                                             /* enqueue_all */
    do
    :: t < first + EACH -> push(me, t); t++
    :: else -> break
    od;
#ifndef BUG_NOTIFY_FIRST
    notify_workers(me);
#endif
    gil_drop()
}
#endif

#if STEPPERS
proctype Stepper(byte me)
{
    LOCALS;
    gil_take();
    wanted++;                                               /* c_token */
    do
    :: true ->
        events_prepare(workers, me);
        take_token();
        if
        :: index != NONE -> events_leave(workers, me); break
        :: else ->
            gil_drop();
            fall_asleep(workers, me);
            sleep_on(workers, me, false);
            gil_take();
#ifdef INTERRUPT
            if
            :: true
            :: true ->                                      /* PyErr_CheckSignals raises: the stepper goes away */
                wanted--;
#ifndef BUG_INTERRUPT_KEEPS
                notify_workers(me);                         /* a wake-up that was a worker's may have come here */
#endif
                goto gone
            fi
#endif
        fi
    od;
    wanted--;
    run_batch();
    release_token(me);
gone:
    gil_drop();
    steppers_left--
}
#endif

init
{
    byte m, t;
    atomic {
        do
        :: m < WORKERS -> run Worker(m); m++
        :: else -> break
        od;
#if CALLERS
        do
        :: m < WORKERS + CALLERS -> run Caller(m, t); m++; t = t + EACH
        :: else -> break
        od;
#endif
#if SUBMITTERS
        do
        :: m < WORKERS + CALLERS + SUBMITTERS -> run Submitter(m, t); m++; t = t + EACH
        :: else -> break
        od;
#endif
#if STEPPERS
        do
        :: m < THREADS -> run Stepper(m); m++
        :: else -> break
        od;
#endif
        m = 0;
        t = 0
    };
    /* Not an end state: whoever is asleep now, sleeps although there is work and a token for it. */
#ifdef FOREVER
end_forever:
#endif
    (answered | hung) == ALL && steppers_left == 0;
end:
    timeout;
    assert(queued == 0 && idle == INSTANCES - has_hung && workers.waiters >= WORKERS - has_hung)
}

#ifdef FOREVER
/* Once queued, ticket 0 is answered, although others come and go for ever. */
ltl served { [] (waits_0 -> <> !waits_0) }
#endif
