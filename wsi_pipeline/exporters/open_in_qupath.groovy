/*
 * Imports results of wsi_pipeline into the images of a QuPath project (QuPath 0.5 to 0.8).
 * For research use only. Not for use in diagnostic procedures.
 *
 * In QuPath: open the project that holds the slides, drag this file from the folder of
 * results onto QuPath, and choose Run > Run (not "Run for project": it goes through all
 * images itself). Without a window, for one image of any name, with the folder of results:
 *   QuPath script open_in_qupath.groovy --project project.qpproj --image NAME --args RESULTS
 *
 * An image gets the results of the slide of its file name. All images are looked at first:
 * where the size of one is not that of its results, nothing is imported into any. Objects
 * that are there already are not added again, so it can be run as often as you like.
 */
import com.google.gson.Gson
import com.google.gson.stream.JsonReader
import java.util.zip.GZIPInputStream
import java.util.zip.ZipInputStream
import qupath.lib.images.ImageData
import qupath.lib.images.servers.ImageServer
import qupath.lib.io.PathIO
import qupath.lib.objects.PathObject
import qupath.lib.objects.hierarchy.PathObjectHierarchy
import qupath.lib.projects.Project
import qupath.lib.projects.ProjectImageEntry
import qupath.lib.scripting.QP

/** What to import of each slide: add "attention.geojson" for its patches. */
static List<String> wanted() {
    return List.of("segmentation.geojson");
}

/** The files of a slide's folder that are wanted, plain or packed. */
static List<File> filesIn(File folder) {
    List<File> found = new ArrayList<File>();
    for (String name : wanted()) {
        for (String ending : List.of("", ".gz", ".zip")) {
            File file = new File(folder, name + ending);
            if (file.isFile()) {
                found.add(file);
            }
        }
    }
    return found;
}

/** What a file says of itself, read without its objects. */
static Map headerOf(File file) throws IOException {
    InputStream stream = new BufferedInputStream(new FileInputStream(file));
    try {
        if (file.getName().endsWith(".gz")) {
            stream = new GZIPInputStream(stream);
        } else if (file.getName().endsWith(".zip")) {
            ZipInputStream zip = new ZipInputStream(stream);
            zip.getNextEntry();
            stream = zip;
        }
        JsonReader reader = new JsonReader(new InputStreamReader(stream, "UTF-8"));
        reader.beginObject();
        while (reader.hasNext()) {
            if (reader.nextName().equals("wsi_pipeline")) {
                return (Map) new Gson().fromJson(reader, Map.class);
            }
            reader.skipValue();
        }
    } finally {
        stream.close();
    }
    throw new IOException(file.toString() + ": no file of wsi_pipeline; expected the member wsi_pipeline");
}

/** Folders of the slides with results, by the slides' file names. */
static Map<String, List<File>> foldersIn(File results) throws IOException {
    Map<String, List<File>> folders = new TreeMap<String, List<File>>();
    File[] all = results.listFiles();
    if (all == null) {
        throw new IOException(results.toString() + ": no folder of results");
    }
    Arrays.sort(all);
    for (File folder : all) {
        File manifest = new File(folder, "manifest.json");
        if (!manifest.isFile() || filesIn(folder).isEmpty()) {
            continue;
        }
        Reader reader = new InputStreamReader(new FileInputStream(manifest), "UTF-8");
        try {
            Map facts = (Map) new Gson().fromJson(reader, Map.class);
            String slide = (String) facts.get("slide");
            folders.computeIfAbsent(slide, name -> new ArrayList<File>()).add(folder);
        } finally {
            reader.close();
        }
    }
    return folders;
}

/** File name of an image. */
static String nameOf(ImageServer server) {
    Collection<URI> places = server.getURIs();
    return places.isEmpty() ? "" : new File(places.iterator().next().getPath()).getName();
}

/** Why an image cannot take the objects of a file; null where it can. */
static String problemWith(ImageServer server, File file) throws IOException {
    Map header = headerOf(file);
    List size = (List) header.get("frame_size_px");
    List offset = (List) header.get("offset_px");
    int width = ((Number) size.get(0)).intValue();
    int height = ((Number) size.get(1)).intValue();
    if (server.getWidth() == width && server.getHeight() == height) {
        return null;
    }
    String frame = (String) header.get("frame");
    String told = nameOf(server) + ": the image has " + server.getWidth() + " x " +
        server.getHeight() + " px, the results have " + width + " x " + height + " px";
    if (frame.equals("level0")) {
        return told + " (the full slide). Add the image to the project anew with the " +
            "preference \"Crop to OpenSlide bounds\" switched off, or export with " +
            "--frame qupath.";
    }
    return told + " (from " + ((Number) offset.get(0)).intValue() + ", " +
        ((Number) offset.get(1)).intValue() + " on, the part that was scanned). Add the " +
        "image to the project anew with the preference \"Crop to OpenSlide bounds\" " +
        "switched on, without --no-crop, or export with --frame level0.";
}

/** Warn where QuPath measures with another pixel size than the results were made with. */
static void compareScale(ImageServer server, File file, List<String> report) throws IOException {
    List mpp = (List) headerOf(file).get("mpp");
    double ours = ((Number) mpp.get(0)).doubleValue();
    double theirs = server.getPixelCalibration().getPixelWidthMicrons();
    if (!(Math.abs(theirs / ours - 1) < 0.01d)) {
        report.add("WARNING: " + nameOf(server) + ": " + theirs + " um/px in QuPath, " +
            ours + " in the results; areas measured by QuPath will differ");
    }
}

/** The objects of files that an image does not have yet. */
static List<PathObject> newObjects(PathObjectHierarchy hierarchy, List<File> files) throws IOException {
    Set<UUID> known = new HashSet<UUID>();
    for (PathObject there : hierarchy.getAllObjects(false)) {
        known.add(there.getID());
    }
    List<PathObject> added = new ArrayList<PathObject>();
    for (File file : files) {
        for (PathObject object : PathIO.readObjects(file)) {
            if (known.add(object.getID())) {
                added.add(object);
            }
        }
    }
    return added;
}

/** Import into all images of a project, or stop before the first. */
static void importAll(Project project, ProjectImageEntry open, ImageData shown, File results, List<String> report) throws Exception {
    Map<String, List<File>> folders = foldersIn(results);
    Map<ProjectImageEntry, List<File>> found = new LinkedHashMap<ProjectImageEntry, List<File>>();
    List<String> problems = new ArrayList<String>();
    for (Object one : project.getImageList()) {
        ProjectImageEntry entry = (ProjectImageEntry) one;
        ImageServer server = (ImageServer) entry.getServerBuilder().build();
        try {
            List<File> same = folders.getOrDefault(nameOf(server), List.of());
            if (same.isEmpty()) {
                report.add(entry.getImageName() + ": no results for a slide of this name");
                continue;
            }
            if (same.size() > 1) {
                problems.add(nameOf(server) + ": several slides have this name: " + same);
                continue;
            }
            List<File> files = filesIn(same.get(0));
            for (File file : files) {
                String problem = problemWith(server, file);
                if (problem != null) {
                    problems.add(problem);
                }
                compareScale(server, file, report);
            }
            found.put(entry, files);
        } finally {
            server.close();
        }
    }
    if (!problems.isEmpty()) {
        throw new IllegalStateException("Nothing was imported. " + String.join(" ", problems));
    }
    if (found.isEmpty()) {
        throw new IllegalStateException(results.toString() + ": no results for any image of the project");
    }
    for (Map.Entry<ProjectImageEntry, List<File>> each : found.entrySet()) {
        ProjectImageEntry entry = each.getKey();
        boolean isOpen = entry.equals(open) && shown != null;
        ImageData imageData = isOpen ? shown : entry.readImageData();
        PathObjectHierarchy hierarchy = imageData.getHierarchy();
        List<PathObject> added = newObjects(hierarchy, each.getValue());
        if (!added.isEmpty()) {
            hierarchy.addObjects(added);
            entry.saveImageData(imageData);
        }
        report.add(entry.getImageName() + ": " + added.size() + " objects added");
        if (!isOpen) {
            imageData.getServer().close();
        }
    }
    project.syncChanges();
}

/** The folder of results: as told by --args, else where this script lies. */
static File folderOf(Binding binding) {
    Object told = binding.hasVariable("args") ? binding.getVariable("args") : null;
    String[] words = told instanceof String[] ? (String[]) told : new String[0];
    if (words.length > 0) {
        return new File(words[0]);
    }
    Object script = binding.hasVariable("qupath.script.file") ? binding.getVariable("qupath.script.file") : null;
    if (script == null) {
        throw new IllegalStateException("Save this script in the folder of results and run it from there.");
    }
    return new File(script.toString()).getAbsoluteFile().getParentFile();
}

if (QP.getProject() == null) {
    throw new IllegalStateException("Open the project with the slides first.");
}
List<String> report = new ArrayList<String>();
try {
    importAll(QP.getProject(), QP.getProjectEntry(), QP.getCurrentImageData(), folderOf(binding), report);
} finally {
    for (String line : report) {
        println(line);
    }
}
