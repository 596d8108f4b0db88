import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Types;

/** Prints what JDBC makes of a column of the type, one fact a line. */
class Facts {
    public static void main(String[] arguments) throws Exception {
        try (Connection connection = DriverManager.getConnection(arguments[0])) {
            reading(connection);
            binding(connection);
            batch(connection);
            updatable(connection);
        }
    }

    static void reading(Connection connection) throws SQLException {
        String sql = "SELECT email FROM accounts WHERE id = 1";
        try (ResultSet row = connection.createStatement().executeQuery(sql)) {
            row.next();
            System.out.println("type " + row.getMetaData().getColumnTypeName(1));
            System.out.println("is OTHER " + (row.getMetaData().getColumnType(1) == Types.OTHER));
            System.out.println("getString " + row.getString("email"));
            System.out.println("getObject " + row.getObject(1).getClass().getSimpleName());
            System.out.println("toString " + row.getObject(1));
            try {
                row.getObject(1, String.class);
            } catch (SQLException error) {
                System.out.println("as String " + error.getMessage());
            }
        }
    }

    static void binding(Connection connection) throws SQLException {
        String sql = "SELECT id FROM accounts WHERE email = ?";
        try (PreparedStatement lookup = connection.prepareStatement(sql)) {
            lookup.setString(1, "user1@example.com");
            print("setString", lookup);
            lookup.setObject(1, "user2@example.com");
            print("setObject", lookup);
            lookup.setObject(1, "user3@example.com", Types.VARCHAR);
            print("VARCHAR", lookup);
            lookup.setObject(1, "user4@example.com", Types.OTHER);
            print("OTHER", lookup);
        }
        sql = "INSERT INTO accounts (email) VALUES (?) RETURNING id";
        try (PreparedStatement insert = connection.prepareStatement(sql)) {
            insert.setNull(1, Types.VARCHAR);
            print("setNull", insert);
        }
    }

    static void print(String name, PreparedStatement statement) throws SQLException {
        try (ResultSet row = statement.executeQuery()) {
            row.next();
            System.out.println(name + " " + row.getInt(1));
        }
    }

    static void batch(Connection connection) throws SQLException {
        String sql = "INSERT INTO accounts (email) VALUES (?)";
        try (PreparedStatement insert =
                connection.prepareStatement(sql, new String[] {"email"})) {
            for (String email : new String[] {"a", "b", "c"}) {
                insert.setString(1, email);
                insert.addBatch();
            }
            insert.executeBatch();
            ResultSet keys = insert.getGeneratedKeys();
            while (keys.next()) {
                System.out.println("generated " + keys.getString(1));
            }
        }
    }

    static void updatable(Connection connection) throws SQLException {
        String sql = "SELECT id, email FROM accounts WHERE id = 1";
        try (ResultSet row =
                connection
                        .createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE)
                        .executeQuery(sql)) {
            row.next();
            row.updateString("email", "changed");
            row.updateRow();
            System.out.println("updated " + row.getString("email"));
        }
    }
}
