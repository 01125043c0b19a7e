"""What the rest needs of the operating system: files, locks, signals, threads, the console, limits of the machine."""
