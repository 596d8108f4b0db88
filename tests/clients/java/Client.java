import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.sql.Array;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Runs statements with PostgreSQL's JDBC driver as it comes.
 *
 * Java has no JSON, so values go in and out as a tag and what follows it: n (NULL),
 * s (text), i (integer), a (array of values). Standard input holds statements, each its
 * text and an array of parameters; standard output gets, for each, an array of rows,
 * or e, the SQLSTATE and the message. Each distinct text is one PreparedStatement,
 * which the driver prepares on the server at its fifth execution.
 */
class Client {
    public static void main(String[] arguments) throws Exception {
        var in = new DataInputStream(System.in);
        var out = new DataOutputStream(System.out);
        Map<String, PreparedStatement> statements = new HashMap<>();
        try (Connection connection = DriverManager.getConnection(arguments[0])) {
            for (int left = in.readInt(); left > 0; left--) {
                var sql = (String) read(in);
                var parameters = (List<?>) read(in);
                try {
                    var statement = statements.get(sql);
                    if (statement == null) {
                        statement = connection.prepareStatement(sql);
                        statements.put(sql, statement);
                    }
                    bind(connection, statement, parameters);
                    write(out, statement.execute() ? rows(statement.getResultSet()) : List.of());
                } catch (SQLException error) {
                    out.writeByte('e');
                    write(out, error.getSQLState());
                    write(out, error.getMessage());
                }
            }
        }
        out.flush();
    }

    static void bind(Connection connection, PreparedStatement statement, List<?> parameters)
            throws SQLException {
        for (int i = 0; i < parameters.size(); i++) {
            Object value = parameters.get(i);
            if (value instanceof Integer number) {
                statement.setInt(i + 1, number);
            } else if (value instanceof List<?> list) {
                statement.setArray(i + 1, connection.createArrayOf("text", list.toArray()));
            } else {
                statement.setString(i + 1, (String) value);
            }
        }
    }

    static List<List<Object>> rows(ResultSet result) throws SQLException {
        List<List<Object>> rows = new ArrayList<>();
        while (result.next()) {
            List<Object> row = new ArrayList<>();
            for (int i = 1; i <= result.getMetaData().getColumnCount(); i++) {
                Object value = result.getObject(i);
                if (value instanceof Array array) {
                    row.add(List.of((Object[]) array.getArray()));
                } else if (value == null || value instanceof Integer) {
                    row.add(value);
                } else {
                    row.add(result.getString(i));
                }
            }
            rows.add(row);
        }
        return rows;
    }

    static Object read(DataInputStream in) throws IOException {
        switch (in.readByte()) {
            case 'n':
                return null;
            case 'i':
                return in.readInt();
            case 's':
                return new String(in.readNBytes(in.readInt()), StandardCharsets.UTF_8);
            default:
                List<Object> list = new ArrayList<>();
                for (int left = in.readInt(); left > 0; left--) {
                    list.add(read(in));
                }
                return list;
        }
    }

    static void write(DataOutputStream out, Object value) throws IOException {
        if (value == null) {
            out.writeByte('n');
        } else if (value instanceof Integer number) {
            out.writeByte('i');
            out.writeInt(number);
        } else if (value instanceof List<?> list) {
            out.writeByte('a');
            out.writeInt(list.size());
            for (Object member : list) {
                write(out, member);
            }
        } else {
            byte[] bytes = value.toString().getBytes(StandardCharsets.UTF_8);
            out.writeByte('s');
            out.writeInt(bytes.length);
            out.write(bytes);
        }
    }
}
