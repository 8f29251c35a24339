/* Walks what lies below argv[1] by libc's own walkers, each in a folder of its own, and says what it has met. */
#define _GNU_SOURCE
#define _XOPEN_SOURCE 700
#include <dirent.h>
#include <ftw.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <wordexp.h>
#ifdef __GLIBC__
#include <fts.h>
#endif

static char root[400], path[500];

static const char *in(const char *rest) {
    snprintf(path, sizeof path, "%s/%s", root, rest);
    return path;
}

static int each(const char *name, const struct stat *stat, int kind, struct FTW *at) {
    (void)kind;
    printf("nftw %s %d %d\n", name + strlen(root), S_ISREG(stat->st_mode) ? (int)stat->st_size : 0, at->level);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    snprintf(root, sizeof root, "%s", argv[1]);
    nftw(in("deep-first"), each, 20, FTW_DEPTH | FTW_PHYS);
    nftw(in("plain"), each, 20, FTW_PHYS);
    nftw(in("followed"), each, 20, 0);

    glob_t found;
    if (glob(in("globbed/*/?/e*"), 0, 0, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc; i++) printf("glob %s\n", found.gl_pathv[i] + strlen(root));

    struct dirent **list;
    int count = scandir(in("scanned/a/x"), &list, 0, alphasort);
    for (int i = 0; i < count; i++) printf("scandir %s\n", list[i]->d_name);

    wordexp_t words;
    char text[1000];
    snprintf(text, sizeof text, "%s/words/*/x/* '%s/words/*'", root, root);
    if (wordexp(text, &words, 0) == 0)
        for (size_t i = 0; i < words.we_wordc; i++) printf("wordexp %s\n", words.we_wordv[i] + strlen(root));

#ifdef __GLIBC__
    char *roots[] = {(char *)in("fts"), 0};
    FTS *walk = fts_open(roots, FTS_PHYSICAL | FTS_NOSTAT, 0);
    for (FTSENT *node; walk && (node = fts_read(walk));)
        if (node->fts_info != FTS_DP) printf("fts %d %s\n", node->fts_level, node->fts_path + strlen(root));
#endif
    return 0;
}
