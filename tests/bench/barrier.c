/* Times barriers when told to: `barrier VARIANT FOLDER`. Each rank sleeps outside MPI on the FIFO FOLDER/RANK until it gets a
 * number of barriers (8 bytes; 0 ends it); rank 0 writes the seconds they took to FOLDER/result. VARIANT is plain (also with the
 * wrapper preloaded) or paper: the scheme of the OVIS proof of concept, where rank 0 takes a semaphore and reads a flag's file at
 * every barrier, and two broadcasts tell the others. */
#include <fcntl.h>
#include <mpi.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int rank;
static char flag_file[4096];
static sem_t *semaphore;

static void paper_barrier(void)
{
    int told[2] = {0, 0};
    if (rank == 0) {
        char flag[1];
        sem_wait(semaphore);
        int file = open(flag_file, O_RDONLY);
        if (read(file, flag, sizeof flag) == 1)
            told[0] = flag[0] == '1';
        close(file);
        sem_post(semaphore);
    }
    MPI_Bcast(&told[0], 1, MPI_INT, 0, MPI_COMM_WORLD);
    MPI_Bcast(&told[1], 1, MPI_INT, 0, MPI_COMM_WORLD);
    MPI_Barrier(MPI_COMM_WORLD);
}

static void plain_barrier(void)
{
    MPI_Barrier(MPI_COMM_WORLD);
}

int main(int count, char **words)
{
    char path[4096];
    uint64_t barriers;
    void (*barrier)(void) = strcmp(words[1], "paper") ? plain_barrier : paper_barrier;
    const char *folder = words[2];
    MPI_Init(&count, &words);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    snprintf(flag_file, sizeof flag_file, "%s/flag", folder);
    semaphore = mmap(NULL, sizeof *semaphore, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sem_init(semaphore, 1, 1);
    snprintf(path, sizeof path, "%s/result", folder);
    FILE *result = fopen(path, "r+");
    snprintf(path, sizeof path, "%s/%d", folder, rank);
    FILE *orders = fopen(path, "r");
    while (orders && result && fread(&barriers, sizeof barriers, 1, orders) == 1 && barriers) {
        barrier();
        double began = MPI_Wtime();
        for (uint64_t i = 0; i < barriers; i++)
            barrier();
        double seconds = MPI_Wtime() - began;
        if (rank == 0) {
            fwrite(&seconds, sizeof seconds, 1, result);
            fflush(result);
        }
    }
    MPI_Finalize();
    return 0;
}
