package tidings.peers;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.file.Path;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.api.common.serialization.AbstractDeserializationSchema;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.file.src.FileSource;
import org.apache.flink.connector.file.src.reader.TextLineInputFormat;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/**
 * Runs the job once for each line of standard input, and answers each with one line.
 *
 * <pre>
 * STATE file FOLDER ANSWERS CHECKPOINTS PARALLELISM
 * STATE kafka BROKERS/TOPIC ANSWERS CHECKPOINTS PARALLELISM
 * </pre>
 *
 * STATE is {@code hashmap} or {@code rocksdb}. From a file time is what the events say; from Kafka it is the machine's,
 * as it is in tidings, so that windows stay open and what is compared is what was gathered.
 */
public final class Main {
    private Main() {}

    public static void main(String[] arguments) throws Exception {
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in));
        for (String request = requests.readLine(); request != null; request = requests.readLine()) {
            Measured.reset();
            run(request.split(" "));
            System.out.println(Measured.report());
        }
    }

    private static void run(String[] request) throws Exception {
        String state = request[0];
        boolean fromFile = request[1].equals("file");
        String from = request[2];
        String answers = request[3];
        String checkpoints = request[4];
        int parallelism = Integer.parseInt(request[5]);

        Configuration configuration = new Configuration();
        configuration.setString("state.backend.type", state);
        configuration.setString("execution.checkpointing.incremental", String.valueOf(state.equals("rocksdb")));
        configuration.setString("execution.checkpointing.interval", "5 s");
        configuration.setString("execution.checkpointing.mode", "EXACTLY_ONCE");
        configuration.setString("execution.checkpointing.dir", Path.of(checkpoints).toUri().toString());
        configuration.setString("pipeline.object-reuse", "true");
        configuration.setString("taskmanager.memory.managed.size", "1 gb");
        StreamExecutionEnvironment job =
                StreamExecutionEnvironment.createLocalEnvironment(parallelism, configuration);

        DataStream<Act> acts = fromFile ? file(job, from) : kafka(job, from);
        acts.keyBy(act -> act.user)
                .process(new Others.Dedup())
                .keyBy(act -> act.user + ' ' + act.type + ' ' + act.object)
                .process(new Others.Gather(fromFile))
                .sinkTo(new Lines(answers));
        job.execute("others");
    }

    /** One file for each subtask: a subtask reads one after the other, and time must not step back. */
    private static DataStream<Act> file(StreamExecutionEnvironment job, String folder) {
        FileSource<String> source = FileSource.forRecordStreamFormat(
                        new TextLineInputFormat(), org.apache.flink.core.fs.Path.fromLocalFile(new java.io.File(folder)))
                .build();
        return job.fromSource(source, WatermarkStrategy.noWatermarks(), "file")
                .map(new Parse())
                .assignTimestampsAndWatermarks(WatermarkStrategy.<Act>forMonotonousTimestamps()
                        .withTimestampAssigner((act, before) -> act.time));
    }

    private static DataStream<Act> kafka(StreamExecutionEnvironment job, String from) {
        int slash = from.indexOf('/');
        KafkaSource<Act> source = KafkaSource.<Act>builder()
                .setBootstrapServers(from.substring(0, slash))
                .setTopics(from.substring(slash + 1))
                .setStartingOffsets(OffsetsInitializer.earliest())
                .setBounded(OffsetsInitializer.latest())
                .setProperty("partition.discovery.interval.ms", "0")
                .setDeserializer(KafkaRecordDeserializationSchema.valueOnly(new ParseBytes()))
                .build();
        return job.fromSource(source, WatermarkStrategy.noWatermarks(), "kafka");
    }

    /** A line as an event. */
    private static final class Parse extends RichMapFunction<String, Act> {
        private transient boolean started;

        @Override
        public void open(OpenContext context) {
            started = false;
        }

        @Override
        public Act map(String line) throws Exception {
            if (!started) {
                started = true;
                Measured.first();
            }
            return Act.parse(line);
        }
    }

    /** A record's value as an event. */
    private static final class ParseBytes extends AbstractDeserializationSchema<Act> {
        private transient boolean started;

        ParseBytes() {
            super(Act.class);
        }

        @Override
        public Act deserialize(byte[] value) throws java.io.IOException {
            if (!started) {
                started = true;
                Measured.first();
            }
            return Act.parse(value);
        }
    }
}
