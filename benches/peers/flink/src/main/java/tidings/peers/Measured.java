package tidings.peers;

import java.util.concurrent.atomic.AtomicLong;

/**
 * What a run in this JVM did. Flink's local cluster runs in the process that starts it, so that a run can be timed from
 * its first event to its last answer, without the start of the cluster.
 */
final class Measured {
    private static final AtomicLong FIRST = new AtomicLong();
    private static final AtomicLong LAST = new AtomicLong();
    private static final AtomicLong REPEATS = new AtomicLong();
    private static final AtomicLong GATHERED = new AtomicLong();

    private Measured() {}

    static void reset() {
        FIRST.set(Long.MAX_VALUE);
        LAST.set(0);
        REPEATS.set(0);
        GATHERED.set(0);
    }

    /** A source read its first event. */
    static void first() {
        FIRST.accumulateAndGet(System.nanoTime(), Math::min);
    }

    /** A sink has nothing more to write. */
    static void last() {
        LAST.accumulateAndGet(System.nanoTime(), Math::max);
    }

    static void repeats(long count) {
        REPEATS.addAndGet(count);
    }

    static void gathered(long count) {
        GATHERED.addAndGet(count);
    }

    /** One line of JSON. */
    static String report() {
        return String.format(
                "{\"nanos\":%d,\"repeats\":%d,\"gathered\":%d}",
                LAST.get() - FIRST.get(), REPEATS.get(), GATHERED.get());
    }
}
