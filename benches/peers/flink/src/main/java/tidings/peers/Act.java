package tidings.peers;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.time.Instant;

/** Who did what to which of a user's objects: what the job needs of an event. */
public final class Act {
    private static final JsonFactory JSON = new JsonFactory();

    public String id = "";
    public String user = "";
    public String type = "";
    public String object = "";
    public String actor = "";
    public String name = "";
    /** Milliseconds since 1970, UTC. */
    public long time;

    /** Reads an event, and of it only what is needed: a tree or a bound class would be slower. */
    static Act parse(JsonParser json) throws IOException {
        Act act = new Act();
        if (json.nextToken() != JsonToken.START_OBJECT) {
            throw new IOException("an event is a JSON object");
        }
        while (json.nextToken() == JsonToken.FIELD_NAME) {
            String field = json.currentName();
            json.nextToken();
            switch (field) {
                case "id" -> act.id = json.getText();
                case "user_id" -> act.user = json.getText();
                case "type" -> act.type = json.getText();
                case "time" -> act.time = Instant.parse(json.getText()).toEpochMilli();
                case "actor" -> act.actor(json);
                case "object" -> act.object(json);
                default -> json.skipChildren();
            }
        }
        return act;
    }

    static Act parse(String text) throws IOException {
        try (JsonParser json = JSON.createParser(text)) {
            return parse(json);
        }
    }

    static Act parse(byte[] bytes) throws IOException {
        try (JsonParser json = JSON.createParser(bytes)) {
            return parse(json);
        }
    }

    private void actor(JsonParser json) throws IOException {
        while (json.nextToken() == JsonToken.FIELD_NAME) {
            String field = json.currentName();
            json.nextToken();
            switch (field) {
                case "id" -> actor = json.getText();
                case "name" -> name = json.getText();
                default -> json.skipChildren();
            }
        }
    }

    private void object(JsonParser json) throws IOException {
        while (json.nextToken() == JsonToken.FIELD_NAME) {
            String field = json.currentName();
            json.nextToken();
            if (field.equals("id")) {
                object = json.getText();
            } else {
                json.skipChildren();
            }
        }
    }
}
