// SPDX-License-Identifier: Apache-2.0
//
// An HTTP server on the JDK's own; _loads/runtimes.py knows its answers.
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.concurrent.Executors;
import java.util.function.IntFunction;
import java.util.stream.Collectors;
import java.util.stream.LongStream;

final class Web {
    private static final class Node {
        final Node left, right;
        final int depth;

        Node(int depth) {
            this.depth = depth;
            left = depth == 1 ? null : new Node(depth - 1);
            right = depth == 1 ? null : new Node(depth - 1);
        }

        int total() {
            return depth + (left == null ? 0 : left.total() + right.total());
        }
    }

    private static String hash(int n) {
        try {
            MessageDigest digest = MessageDigest.getInstance("SHA-256");
            StringBuilder text = new StringBuilder();
            for (byte value : digest.digest((n + ",").repeat(200).getBytes(StandardCharsets.US_ASCII)))
                text.append(String.format("%02x", value));
            return text.toString();
        } catch (java.security.NoSuchAlgorithmException error) {
            throw new IllegalStateException(error);
        }
    }

    private static String sort(int seed) {
        long[] values = LongStream.iterate(next(seed), Web::next).limit(100).toArray();
        Arrays.sort(values);
        return Arrays.stream(values).mapToObj(Long::toString).collect(Collectors.joining(","));
    }

    private static long next(long seed) {
        return seed * 1664525 + 1013904223 & 0xFFFFFFFFL;
    }

    // What the machine throws itself: through a signal handler (null) and a check.
    private static void fail(int depth, int[] nowhere) {
        if (depth == 0)
            nowhere[0] = 1;
        fail(depth - 1, nowhere);
    }

    private static String failures(int n) {
        for (int turn = 0; turn < 10; turn++) {
            try {
                fail(turn, turn % 2 == 0 ? null : new int[0]);
            } catch (NullPointerException | ArrayIndexOutOfBoundsException error) {
                n += error.getStackTrace()[turn].getMethodName().equals("fail") ? turn : 1000;
            }
        }
        return Integer.toString(n);
    }

    private static byte[] reversed(byte[] body) {
        byte[] back = new byte[body.length];
        for (int i = 0; i < body.length; i++)
            back[i] = body[body.length - 1 - i];
        return back;
    }

    private static void answer(HttpExchange exchange, byte[] body) throws IOException {
        exchange.sendResponseHeaders(200, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }

    private static void get(HttpServer server, String path, IntFunction<String> made) {
        server.createContext(path, exchange -> {
            int number = Integer.parseInt(exchange.getRequestURI().getQuery().substring(2));
            answer(exchange, made.apply(number).getBytes(StandardCharsets.US_ASCII));
        });
    }

    public static void main(String[] arguments) throws IOException {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
        get(server, "/hash", Web::hash);
        get(server, "/sort", Web::sort);
        get(server, "/tree", n -> Integer.toString(n + new Node(8).total()));
        get(server, "/fail", Web::failures);
        server.createContext("/reverse",
            exchange -> answer(exchange, reversed(exchange.getRequestBody().readAllBytes())));
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.start();
        System.out.println("port " + server.getAddress().getPort());
    }
}
