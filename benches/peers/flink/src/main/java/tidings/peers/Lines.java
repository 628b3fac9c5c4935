package tidings.peers;

import java.io.BufferedWriter;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.flink.api.connector.sink2.Sink;
import org.apache.flink.api.connector.sink2.SinkWriter;
import org.apache.flink.api.connector.sink2.WriterInitContext;

/** Writes answers as lines, one file per subtask. */
final class Lines implements Sink<String> {
    private final String folder;

    Lines(String folder) {
        this.folder = folder;
    }

    @Override
    public SinkWriter<String> createWriter(WriterInitContext context) throws IOException {
        Path file = Path.of(folder, "answers-" + context.getTaskInfo().getIndexOfThisSubtask());
        BufferedWriter out = Files.newBufferedWriter(file);
        return new SinkWriter<>() {
            @Override
            public void write(String line, Context at) throws IOException {
                out.write(line);
                out.newLine();
            }

            @Override
            public void flush(boolean endOfInput) throws IOException {
                out.flush();
                if (endOfInput) {
                    Measured.last();
                }
            }

            @Override
            public void close() throws IOException {
                out.close();
            }
        };
    }
}
