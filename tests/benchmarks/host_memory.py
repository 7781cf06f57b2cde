"""Resident memory of nets beside what the plan counts with, in fresh processes.

``python -m tests.benchmarks.host_memory`` prints the table of `resident_bytes`; with
MALLOC_MMAP_THRESHOLD_=65536 in the environment, without what the heap adds.
"""

from tests.growth import grown

MIB = 1 << 20
ROWS = (
    ("small", 64, 64),
    ("small", 64, 512),
    ("small", 64, 4096),
    ("small", 128, 64),
    ("resnet18", 128, 16),
    ("resnet18", 128, 256),
    ("resnet18", 224, 16),
    ("segmenter", 256, 8),
    ("segmenter", 256, 32),
    ("segmenter", 256, 60),
)


def main() -> None:
    """Measure every row."""
    print(f"{'net, side and batch':26} held  traced above  grown  allowed (MiB)")
    for net, side, batch in ROWS:
        found = grown(net=net, side=side, batch=batch)
        above = found["traced"] - found["held"]
        figures = [
            round(size / MIB)
            for size in (found["held"], above, found["grown"], found["counted"])
        ]
        name = f"{net}, {side} px, {batch}"
        print(f"{name:26} {figures[0]:4} {figures[1]:13} {figures[2]:6} {figures[3]:8}")


if __name__ == "__main__":
    main()
