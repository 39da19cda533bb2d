"""What the TPU compiler says about kernels, without a TPU: nothing here runs on a device, and nothing is a time.

A TPU core executes the schedule that its compiler wrote. Two figures of a kernel are therefore known before it runs:

- *bundles* (`schedule`): the instructions of a hot region of the program, one bundle a cycle. The compiler prints the
  final schedule. Waiting is not in it: a matrix unit that is busy, memory that is slow.
- *cycles* (`cycles`): the compiler's own estimate for a whole kernel, which simulates the schedule with its waits, the
  copies and the control of the grid. Branches and loops that depend on data are not counted, so kernels are compiled
  with lists of tiles that are constants.

Of a kernel that visits n² tiles, the estimate grows with n like a n² + b n + c. Three lengths give a, the cycles of one
more tile; b, those of one more tile of queries; and c. With these and the number of visited tiles, an estimate of any
call follows.

Every kernel is compiled in a process of its own (`measure`), because the compiler reads its options when it is loaded
and ends the process where its simulation does not know an instruction.
"""
