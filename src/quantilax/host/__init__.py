"""Operating-system services: files, locks, signals, threads, the console and machine limits."""
