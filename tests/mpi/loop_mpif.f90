! programs.py's `loop` in Fortran, with mpif.h: a barrier again and again until FOLDER/stop is there.
program loop
  implicit none
  include 'mpif.h'
  integer :: rank, error
  logical :: go_on
  integer(8) :: count
  character(4096) :: folder, path
  call get_command_argument(2, folder)
  call mpi_init(error)
  call mpi_comm_rank(MPI_COMM_WORLD, rank, error)
  write (path, '(a, "/", i0)') trim(folder), rank
  open (10, file=trim(path), access='stream', form='unformatted')
  do count = 0, huge(count) - 1
    write (10, pos=1) int(getpid(), 8), count
    flush (10)
    call sleep_ms(2)
    inquire (file=trim(folder)//'/stop', exist=go_on)
    go_on = .not. go_on
    call mpi_bcast(go_on, 1, MPI_LOGICAL, 0, MPI_COMM_WORLD, error)
    if (.not. go_on) exit
    call mpi_barrier(MPI_COMM_WORLD, error)
    if (error /= MPI_SUCCESS) stop 3
  end do
  call mpi_finalize(error)
contains
  subroutine sleep_ms(ms)
    use iso_c_binding
    integer, intent(in) :: ms
    interface
      integer(c_int) function usleep(microseconds) bind(C)
        import c_int
        integer(c_int), value :: microseconds
      end function
    end interface
    integer(c_int) :: ignored
    ignored = usleep(ms*1000)
  end subroutine
end program
