/* A stream: a backend hands on chunks and waits for room, a reader takes them or leaves, somebody ends the request.
 * See README.md.
 */

#ifndef LIMIT
#define LIMIT 2             /* chunks that may wait for the reader */
#endif
#ifndef CHUNKS
#define CHUNKS 4            /* that the backend makes */
#endif

#define THREADS 1           /* that wait for news: the reader */
#define READER 0
#define fence(me)  skip
#include "events.inc"

#define RUNNING 0           /* Walk.outcome */
#define DONE 1
#define CANCELLED 2
#define FAILED 3

#define OPEN 0              /* Pause.word */
#define PARKED 1
#define SET 2

bool gil;
#define gil_take()  atomic { !gil -> gil = true }
#define gil_drop()  gil = false

byte chunks, emitted, taken;
byte outcome;
bool has_ended, is_left;
bool is_blocked;            /* the backend's pause is in ChunkStream.blocked */
byte word;
bool asleep;                /* the backend, in the kernel */
EventCount news;
byte ends;                  /* so often the reader has come to the end */
bool backend_is_gone, reader_is_gone;

inline word_set()
{
    d_step {
        if
        :: word == PARKED -> asleep = false
        :: else
        fi;
        word = SET
    }
}

/* c_release: under the GIL, as all that follows but sleeping. */
inline release()
{
    if
    :: is_blocked -> word_set()
    :: else
    fi
}

/* Walk.c_end, c_walk_ended, then c_end: whoever is first. */
inline end_walk(how)
{
    if
    :: outcome == RUNNING ->
        outcome = how;
#ifndef BUG_END_IS_SILENT
        release();
#endif
        has_ended = true;
        events_notify_all(news, 0)
    :: else
    fi
}

#define is_unwanted  (outcome != RUNNING || is_left || has_ended)

/* word_wait: park, then sleep unless it is set. */
inline word_wait()
{
#ifdef BUG_PARK_BY_STORE
    word = PARKED;
#else
    d_step {
        if
        :: word == OPEN -> word = PARKED
        :: else
        fi
    };
#endif
    d_step {
        if
        :: word == PARKED -> asleep = true
        :: else
        fi
    };
    !asleep
}

active proctype Backend()
{
    byte k;
    do
    :: emitted == CHUNKS -> break
    :: else ->
        gil_take();                                             /* emit */
again:
        if
        :: is_unwanted -> gil_drop(); break
        :: else
        fi;
        if
        :: chunks < LIMIT ->                                    /* _put */
            chunks++;
            emitted++;
            assert(chunks <= LIMIT);
            events_notify_all(news, 0);
            gil_drop()
        :: else ->                                              /* _wait_for_room, _park */
#ifdef BUG_BLOCKED_LATE
            gil_drop();
            gil_take();
#endif
            word = OPEN;
            is_blocked = true;
            gil_drop();
            word_wait();
            gil_take();
            is_blocked = false;
            goto again
        fi
    od;
    gil_take();
    end_walk(DONE);
    gil_drop();
    backend_is_gone = true
}

active proctype Reader()
{
    byte k;
    bool leaves;
    do
    :: gil_take();
#ifdef LEAVES
        if
        :: leaves = true
        :: leaves = false
        fi;
#endif
#ifdef IDLES
        if
        :: gil_drop(); break                                    /* it comes no more, and does not say so */
        :: true
        fi;
#endif
        if
        :: leaves ->                                            /* close, _leave */
            is_left = true;
            release();
            end_walk(CANCELLED);
            has_ended = true;
            chunks = 0;
            gil_drop();
            break
        :: else
        fi;
        do                                                      /* wait_for */
        :: events_prepare(news, READER);
            if
            :: chunks > 0 || has_ended -> events_leave(news, READER); break
            :: else
            fi;
            gil_drop();
            fall_asleep(news, READER);
            sleep_on(news, READER, false);
            gil_take()
        od;
        if
        :: chunks > 0 ->                                        /* c_take */
            chunks--;
            taken++;
#ifdef BUG_ONLY_AT_HALF
            if
            :: is_blocked && chunks * 2 == LIMIT -> word_set()
#else
            if
            :: is_blocked && chunks * 2 <= LIMIT -> word_set()
#endif
            :: else
            fi;
            gil_drop()
        :: else ->                                              /* the end, and what it was: c_outcome */
            ends++;
            assert(ends == 1 && outcome != RUNNING && !leaves);
            assert(outcome != DONE || (taken == emitted && emitted == CHUNKS));
            gil_drop();
            break
        fi
    od;
    reader_is_gone = true
}

#ifdef ENDS
active proctype End()                                           /* cancel_walk, or what fails a walk: a time limit, close() */
{
    byte k;
    gil_take();
    end_walk(FAILED);
    gil_drop()
}
#endif

init
{
    backend_is_gone && reader_is_gone;                          /* not an end state: nobody waits for ever */
end:
    timeout;
    assert(outcome != RUNNING && taken <= emitted)
}
