! programs.py's `loop` in Fortran, with mpi_f08 or, with -DMPIF, mpif.h: the words in FOLDER/do that it knows.
program loop
#ifdef MPIF
  implicit none
  include 'mpif.h'
  integer :: duplicate
#else
  use mpi_f08
  implicit none
  type(MPI_Comm) :: duplicate
#endif
  integer :: rank, error
  logical :: made = .false.
  integer(8) :: count = 0
  character(16) :: word
  character(4096) :: folder, path
  call get_command_argument(2, folder)
  call mpi_init(error)
  call mpi_comm_rank(MPI_COMM_WORLD, rank, error)
  write (path, '(a, "/", i0)') trim(folder), rank
  open (10, file=trim(path), access='stream', form='unformatted')
  do
    write (10, pos=1) int(getpid(), 8), count
    flush (10)
    call turn()
    select case (word)
    case ('stop')
      exit
    case ('finalize')
      call leave()
    case ('nothing')
      call note('nothing')
      cycle
    case ('off')
      call mpi_pcontrol(0)
      call mpi_barrier(MPI_COMM_WORLD, error)
    case ('on')
      call mpi_pcontrol(1)
      call mpi_barrier(MPI_COMM_WORLD, error)
    case ('dup')
      if (.not. made) call mpi_comm_dup(MPI_COMM_WORLD, duplicate, error)
      made = .true.
      call mpi_barrier(duplicate, error)
    case default
#ifdef MPIF
      call mpi_barrier(MPI_COMM_WORLD, error)
      if (error /= MPI_SUCCESS) stop 3
#else
      call mpi_barrier(MPI_COMM_WORLD) ! its error is optional here
#endif
    end select
    count = count + 1
  end do
  call mpi_finalize(error)
contains
  subroutine turn()
    integer :: status
    call sleep_ms(2)
    word = 'world'
    if (rank == 0) then
      open (20, file=trim(folder)//'/do', status='old', action='read', iostat=status)
      if (status == 0) then
        read (20, '(a)', iostat=status) word
        if (status /= 0) word = 'world'
        close (20)
      end if
    end if
    call mpi_bcast(word, 16, MPI_CHARACTER, 0, MPI_COMM_WORLD, error)
  end subroutine
  subroutine leave()
    logical :: there
    call mpi_finalize(error)
    write (path, '("finalized-", i0)') getpid()
    call note(trim(path))
    do
      inquire (file=trim(folder)//'/end', exist=there)
      if (there) stop
      call sleep_ms(10)
    end do
  end subroutine
  subroutine note(name)
    character(*), intent(in) :: name
    open (30, file=trim(folder)//'/'//name)
    close (30)
  end subroutine
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
