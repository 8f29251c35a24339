// What Java programs do with files below args[0], by absolute paths: java.io, java.nio.file, channels, mappings.
import java.io.*;
import java.nio.*;
import java.nio.channels.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.nio.file.attribute.*;
import java.util.*;
import java.util.stream.*;
import java.util.zip.*;

public class Files {
    static Path root;

    static Path at(String name) {
        return root.resolve(name);
    }

    interface Attempt {
        void run() throws Exception;
    }

    public static void main(String[] args) throws Exception {
        root = Paths.get(args[0]);
        java.nio.file.Files.createDirectories(at("java/a/b"));
        java.nio.file.Files.writeString(at("java/text"), "one\n");
        java.nio.file.Files.writeString(at("java/text"), "two\n", StandardOpenOption.APPEND);
        System.out.println(java.nio.file.Files.readAllLines(at("java/text")));
        try (var file = new RandomAccessFile(at("java/raw").toString(), "rw")) {
            file.seek(100);
            file.write(new byte[5000]);
            file.setLength(4000);
            file.getFD().sync();
            try (var lock = file.getChannel().lock()) {
                System.out.println(lock.isValid() + " " + file.length());
            }
            MappedByteBuffer map = file.getChannel().map(FileChannel.MapMode.READ_WRITE, 0, 4000);
            map.put(0, (byte) 'm');
            map.force();
        }
        try (var out = new PrintWriter(new FileWriter(new File(args[0], "java/printed")))) {
            out.println("printed");
        }
        try (var in = FileChannel.open(at("java/raw"));
                var out = FileChannel.open(at("java/sent"), StandardOpenOption.CREATE, StandardOpenOption.WRITE)) {
            System.out.println(in.transferTo(0, in.size(), out));
            out.write(ByteBuffer.wrap("at the end".getBytes()), 4000);
            out.force(false);
        }
        java.nio.file.Files.move(at("java/raw"), at("java/a/renamed"), StandardCopyOption.ATOMIC_MOVE);
        java.nio.file.Files.createLink(at("java/hard"), at("java/text"));
        java.nio.file.Files.createSymbolicLink(at("java/soft"), Paths.get("text"));
        java.nio.file.Files.createSymbolicLink(at("java/absolute"), at("java/a"));
        System.out.println(java.nio.file.Files.readSymbolicLink(at("java/soft")) + " "
                + java.nio.file.Files.readSymbolicLink(at("java/absolute")) + " "
                + at("java/absolute/b").toRealPath() + " " + new File(args[0], "java/absolute/b").getCanonicalPath());
        java.nio.file.Files.setPosixFilePermissions(at("java/text"), PosixFilePermissions.fromString("rw----r--"));
        java.nio.file.Files.setLastModifiedTime(at("java/text"), FileTime.fromMillis(123456789000L));
        var view = java.nio.file.Files.readAttributes(at("java/soft"), PosixFileAttributes.class);
        System.out.println(view.size() + " " + view.permissions().size() + " " + view.lastModifiedTime());
        System.out.println(java.nio.file.Files.isWritable(at("java/text")) + " " + java.nio.file.Files.exists(at("none"))
                + " " + new File(args[0], "java/text").canRead() + " " + new File(args[0]).isDirectory());
        var attributes = java.nio.file.Files.getFileAttributeView(at("java/text"), UserDefinedFileAttributeView.class);
        attributes.write("colour", ByteBuffer.wrap("blue".getBytes()));
        System.out.println(attributes.list() + " " + attributes.size("colour"));
        attributes.delete("colour");
        java.nio.file.Files.copy(at("java/text"), at("java/copied"), StandardCopyOption.COPY_ATTRIBUTES);
        try (Stream<Path> walk = java.nio.file.Files.walk(root)) {
            walk.sorted().forEach(System.out::println);
        }
        try (var list = java.nio.file.Files.newDirectoryStream(at("java"), "*")) {
            var names = new TreeSet<String>();
            list.forEach(path -> names.add(path.getFileName().toString()));
            System.out.println(names);
        }
        System.out.println(Arrays.stream(new File(args[0], "java").list()).sorted().collect(Collectors.toList()));
        Path temporary = java.nio.file.Files.createTempFile(root, "t", "x");
        java.nio.file.Files.delete(temporary);
        Path folder = java.nio.file.Files.createTempDirectory(root, "t");
        java.nio.file.Files.delete(folder);
        File old = File.createTempFile("old", null, root.toFile());
        System.out.println(old.getParent() + " " + old.delete());
        System.out.println(java.nio.file.Files.getFileStore(root).getTotalSpace() > 0);
        System.out.println(new File(args[0]).getTotalSpace() > 0);
        try (var zip = new ZipOutputStream(new FileOutputStream(at("java/zip").toFile()))) {
            zip.putNextEntry(new ZipEntry("entry"));
            zip.write("zipped".getBytes());
        }
        try (var zip = new ZipFile(at("java/zip").toFile())) {
            System.out.println(new String(zip.getInputStream(zip.getEntry("entry")).readAllBytes()));
        }
        var process = new ProcessBuilder("cat", at("java/printed").toString()).directory(at("java").toFile()).start();
        System.out.print(new String(process.getInputStream().readAllBytes()));
        System.out.println(process.waitFor());
        var builder = new ProcessBuilder("sh", "-c", "pwd; echo redirected").directory(at("java/a").toFile());
        builder.environment().clear();
        builder.redirectOutput(at("java/redirected").toFile());
        System.out.println(builder.start().waitFor());
        System.out.print(java.nio.file.Files.readString(at("java/redirected")));
        try (var server = ServerSocketChannel.open(java.net.StandardProtocolFamily.UNIX)) {
            server.bind(java.net.UnixDomainSocketAddress.of(at("java/socket")));
            try (var client = SocketChannel.open(java.net.UnixDomainSocketAddress.of(at("java/socket")))) {
                System.out.println(client.isConnected() + " " + server.getLocalAddress() + " " + client.getRemoteAddress());
            }
        }
        Attempt[] attempts = {
            () -> new FileInputStream(at("none").toFile()),
            () -> java.nio.file.Files.createDirectory(at("java")),
            () -> java.nio.file.Files.delete(at("java")),
            () -> java.nio.file.Files.createDirectory(root),
            () -> java.nio.file.Files.newByteChannel(at("java/text/below")),
        };
        for (var attempt : attempts) {
            try {
                attempt.run();
            } catch (IOException error) {
                System.out.println(error);
            }
        }
        var watcher = root.getFileSystem().newWatchService();
        at("java/a").register(watcher, StandardWatchEventKinds.ENTRY_CREATE);
        java.nio.file.Files.createFile(at("java/a/watched"));
        System.out.println(watcher.take().pollEvents().get(0).context());
        java.nio.file.Files.delete(at("java/sent"));
        System.out.println(new File(args[0], "java/a/watched").renameTo(new File(args[0], "java/seen")));
    }
}
