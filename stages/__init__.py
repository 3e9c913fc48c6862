import os

# Threads that wait for work soon give their core away. Without this, two trainings on one machine slow each
# other tenfold.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
