import java.sql.Connection;
import java.sql.DriverManager;
import org.postgresql.PGConnection;

/** Runs a COPY by JDBC's CopyManager: "in" from standard input, "out" to standard output. */
class Copy {
    public static void main(String[] arguments) throws Exception {
        try (Connection connection = DriverManager.getConnection(arguments[0])) {
            var copy = connection.unwrap(PGConnection.class).getCopyAPI();
            if (arguments[1].equals("in")) {
                copy.copyIn(arguments[2], System.in);
            } else {
                copy.copyOut(arguments[2], System.out);
            }
        }
    }
}
