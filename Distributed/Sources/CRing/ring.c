/* SPDX-License-Identifier: Apache-2.0 */
/* ring.c - CRing.h by MPI. */
#define _POSIX_C_SOURCE 200112L /* setenv */
#include "CRing.h"

#include <limits.h>
#include <stdlib.h>

#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

_Static_assert(sizeof(MPI_Request) <= sizeof(intptr_t), "a request fits its handle");
_Static_assert(sizeof(MPI_Message) <= sizeof(intptr_t), "a message fits its handle");

/* Where offers are: apart from all other messages. */
static MPI_Comm offers = MPI_COMM_NULL;

/* The request by its place: a call to MPI beside it as an argument may set it later than it is read. */
static int keep(int error, const MPI_Request *request, ring_request *kept) {
    kept->handle = (intptr_t)*request;
    return error;
}

static int send_by(MPI_Comm comm, const void *data, size_t bytes, int to, int tag, ring_request *request) {
    if (bytes > INT_MAX) return MPI_ERR_COUNT;
    MPI_Request mpi = MPI_REQUEST_NULL;
    return keep(MPI_Isend(data, (int)bytes, MPI_BYTE, to, tag, comm, &mpi), &mpi, request);
}

int ring_begin(void) {
    /* A large message is cut into fragments, of which by default three may be on their way before the receiver has looked again:
     * ranks that compute look every few milliseconds. */
    setenv("OMPI_MCA_pml_ob1_send_pipeline_depth", "256", 0);
    int provided;
    int error = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
    if (error) return error;
    error = MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    return error ? error : MPI_Comm_dup(MPI_COMM_WORLD, &offers);
}

int ring_rank(void) {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

int ring_size(void) {
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    return size;
}

void ring_end(void) { MPI_Finalize(); }

void ring_abort(int status) { MPI_Abort(MPI_COMM_WORLD, status); }

int ring_send(const void *data, size_t bytes, int to, int tag, ring_request *request) {
    return send_by(MPI_COMM_WORLD, data, bytes, to, tag, request);
}

int ring_receive(void *data, size_t bytes, int from, int tag, ring_request *request) {
    if (bytes > INT_MAX) return MPI_ERR_COUNT;
    MPI_Request mpi = MPI_REQUEST_NULL;
    return keep(MPI_Irecv(data, (int)bytes, MPI_BYTE, from, tag, MPI_COMM_WORLD, &mpi), &mpi, request);
}

int ring_offer_send(const void *data, size_t bytes, int to, int tag, ring_request *request) {
    return send_by(offers, data, bytes, to, tag, request);
}

int ring_find_offer(ring_offer *offer, int *found) {
    MPI_Message message = MPI_MESSAGE_NULL;
    MPI_Status status;
    int error = MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, offers, found, &message, &status);
    if (error || !*found) return error;
    int bytes = 0;
    error = MPI_Get_count(&status, MPI_BYTE, &bytes);
    *offer = (ring_offer){(intptr_t)message, (size_t)bytes, status.MPI_SOURCE, status.MPI_TAG};
    return error;
}

int ring_take_offer(void *data, ring_offer *offer, ring_request *request) {
    MPI_Message message = (MPI_Message)offer->handle;
    MPI_Request mpi = MPI_REQUEST_NULL;
    return keep(MPI_Imrecv(data, (int)offer->bytes, MPI_BYTE, &message, &mpi), &mpi, request);
}

int ring_gather(const void *data, size_t bytes, void *all, ring_request *request) {
    if (bytes > INT_MAX) return MPI_ERR_COUNT;
    MPI_Request mpi = MPI_REQUEST_NULL;
    return keep(MPI_Iallgather(data, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, MPI_COMM_WORLD, &mpi), &mpi,
                request);
}

int ring_test(ring_request *request, int *done) {
    MPI_Request mpi = (MPI_Request)request->handle;
    return keep(MPI_Test(&mpi, done, MPI_STATUS_IGNORE), &mpi, request);
}

const char *ring_error(int error) {
    static char text[MPI_MAX_ERROR_STRING + 1];
    int length = 0;
    if (MPI_Error_string(error, text, &length)) return "an unknown error";
    text[length] = 0;
    return text;
}

const char *ring_version(void) {
    static char text[MPI_MAX_LIBRARY_VERSION_STRING + 1];
    int length = 0;
    if (MPI_Get_library_version(text, &length)) return "unknown";
    text[length] = 0;
    return text;
}
