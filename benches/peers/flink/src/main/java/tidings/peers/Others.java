package tidings.peers;

import java.time.Duration;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.MapState;
import org.apache.flink.api.common.state.MapStateDescriptor;
import org.apache.flink.api.common.state.StateTtlConfig;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;

/**
 * The job: each event once by its id, then "John and 5 others" per user, type and object.
 *
 * <p>Both steps are the ones that Flink's own documentation would have one write: keyed state, a time to live for ids,
 * a timer per window. Both are keyed such that one user's events keep their order.
 */
final class Others {
    /** How long an id is remembered. */
    static final Duration REMEMBERED = Duration.ofHours(24);

    /** How long a window stays open after its first event. */
    static final Duration WINDOW = Duration.ofMinutes(5);

    private Others() {}

    /** Lets an id of a user through once. */
    static final class Dedup extends KeyedProcessFunction<String, Act, Act> {
        private transient MapState<String, Boolean> seen;
        private transient long repeats;

        @Override
        public void open(OpenContext context) {
            MapStateDescriptor<String, Boolean> descriptor =
                    new MapStateDescriptor<>("seen", String.class, Boolean.class);
            descriptor.enableTimeToLive(StateTtlConfig.newBuilder(REMEMBERED).build());
            seen = getRuntimeContext().getMapState(descriptor);
        }

        @Override
        public void processElement(Act act, Context context, Collector<Act> out) throws Exception {
            if (seen.contains(act.id)) {
                repeats++;
                return;
            }
            seen.put(act.id, Boolean.TRUE);
            out.collect(act);
        }

        @Override
        public void close() {
            Measured.repeats(repeats);
        }
    }

    /** An open window. */
    public static final class Window {
        public long opened;
        public long activities;
        public long actors;
        public String first = "";
    }

    /** Gathers what happens to one object until five minutes after the first of it. */
    static final class Gather extends KeyedProcessFunction<String, Act, String> {
        private final boolean eventTime;
        private transient ValueState<Window> window;
        private transient MapState<String, Boolean> actors;
        private transient long gathered;

        /** With stream time or the machine's. */
        Gather(boolean eventTime) {
            this.eventTime = eventTime;
        }

        @Override
        public void open(OpenContext context) {
            window = getRuntimeContext().getState(new ValueStateDescriptor<>("window", Window.class));
            actors = getRuntimeContext()
                    .getMapState(new MapStateDescriptor<>("actors", String.class, Boolean.class));
        }

        @Override
        public void processElement(Act act, Context context, Collector<String> out) throws Exception {
            gathered++;
            long now = eventTime ? act.time : context.timerService().currentProcessingTime();
            Window open = window.value();
            // Its timer waits for the watermark, which may be behind this event.
            if (open != null && eventTime && now >= open.opened + WINDOW.toMillis()) {
                context.timerService().deleteEventTimeTimer(open.opened + WINDOW.toMillis());
                say(context.getCurrentKey(), open, out);
                open = null;
            }
            if (open == null) {
                open = new Window();
                open.opened = now;
                open.first = act.name;
                long deadline = now + WINDOW.toMillis();
                if (eventTime) {
                    context.timerService().registerEventTimeTimer(deadline);
                } else {
                    context.timerService().registerProcessingTimeTimer(deadline);
                }
            }
            open.activities++;
            if (!actors.contains(act.actor)) {
                actors.put(act.actor, Boolean.TRUE);
                open.actors++;
            }
            window.update(open);
        }

        @Override
        public void onTimer(long at, OnTimerContext context, Collector<String> out) throws Exception {
            Window open = window.value();
            if (open != null && open.opened + WINDOW.toMillis() <= at) {
                say(context.getCurrentKey(), open, out);
            }
        }

        private void say(String key, Window open, Collector<String> out) {
            out.collect(key + ' ' + open.activities + ' ' + open.actors + ' ' + open.first);
            window.clear();
            actors.clear();
        }

        @Override
        public void close() {
            Measured.gathered(gathered);
        }
    }
}
