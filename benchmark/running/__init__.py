"""From a plan to finished cells: one process, a pool of workers, several GPUs or Slurm."""
