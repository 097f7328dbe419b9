/* SPDX-License-Identifier: Apache-2.0 */
/* CRing.h - what is used of MPI: ranks, messages that are sent and received while others compute, and ends.
 *
 * Functions that can fail return 0 or an error of MPI's, in words by ring_error. All are called by one thread. */
#ifndef CRING_H
#define CRING_H

#include <stddef.h>
#include <stdint.h>

/* A message on its way. */
typedef struct ring_request {
    intptr_t handle;
} ring_request;

int ring_begin(void);
int ring_rank(void);
int ring_size(void);
void ring_end(void);
/* Ends all processes of the run, this one too, with that status. */
void ring_abort(int status);

/* Bytes from data, which stays as it is, or to data, which is left alone, until the request is done. Messages between
 * two ranks with one tag arrive in the order in which they were sent. */
int ring_send(const void *data, size_t bytes, int to, int tag, ring_request *request);
int ring_receive(void *data, size_t bytes, int from, int tag, ring_request *request);
/* Messages that a rank takes when it has a place for them, of a kind of their own: looks for one that has come, or is about to. */
typedef struct ring_offer {
    intptr_t handle;
    size_t bytes;
    int from, tag;
} ring_offer;
int ring_offer_send(const void *data, size_t bytes, int to, int tag, ring_request *request);
int ring_find_offer(ring_offer *offer, int *found);
/* To data, of as many bytes as the offer says. Once for each that was found. */
int ring_take_offer(void *data, ring_offer *offer, ring_request *request);
/* The bytes of every rank, in order, to all. */
int ring_gather(const void *data, size_t bytes, void *all, ring_request *request);
/* Gets messages on, and says whether this one is done. A request that is done is empty, and done. */
int ring_test(ring_request *request, int *done);

/* What an error means, for as long as no other is asked for. */
const char *ring_error(int error);
/* The version of the library. */
const char *ring_version(void);

#endif
