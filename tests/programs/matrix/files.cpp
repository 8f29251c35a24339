// What C++ programs do with files below argv[1], by absolute paths: iostream and std::filesystem.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>
namespace fs = std::filesystem;

int main(int, char **argv) {
    fs::path root = argv[1];
    auto at = [&](const char *name) { return root / name; };
    fs::create_directories(at("cc/a/b"));
    std::ofstream(at("cc/text")) << "one\n";
    std::ofstream(at("cc/text"), std::ios::app) << "two\n";
    {
        std::fstream f(at("cc/text"), std::ios::in | std::ios::out);
        f.seekp(4);
        f << "TWO" << std::flush;
        f.seekg(0);
        for (std::string line; std::getline(f, line);) std::cout << line << '\n';
    }
    {
        std::filebuf b;
        b.pubsetbuf(nullptr, 0);
        std::cout << (b.open(at("cc/raw"), std::ios::out | std::ios::binary | std::ios::trunc) != nullptr) << '\n';
        b.sputn("unbuffered", 10);
    }
    { std::ofstream big(at("cc/big")); big << std::string(100000, 'x'); }
    if (FILE *f = std::fopen(at("cc/stdio").c_str(), "w+")) { std::fprintf(f, "stdio %d\n", 7); std::fclose(f); }
    if (FILE *f = std::freopen(at("cc/again").c_str(), "w", stderr)) { std::fputs("reopened\n", f); std::fflush(f); }
    fs::rename(at("cc/raw"), at("cc/a/renamed"));
    fs::create_hard_link(at("cc/text"), at("cc/hard"));
    fs::create_symlink("text", at("cc/soft"));
    fs::create_directory_symlink(at("cc/a"), at("cc/absolute"));
    std::cout << fs::read_symlink(at("cc/soft")) << fs::read_symlink(at("cc/absolute"))
              << fs::canonical(at("cc/absolute/b")) << fs::weakly_canonical(at("cc/absolute/none/x")) << '\n';
    fs::permissions(at("cc/text"), fs::perms::owner_read | fs::perms::owner_write);
    fs::last_write_time(at("cc/text"), fs::file_time_type(std::chrono::seconds(-1000000000)));
    std::cout << fs::file_size(at("cc/soft")) << ' ' << fs::hard_link_count(at("cc/text")) << ' ' << fs::exists(at("none")) << ' '
              << fs::is_directory(at("cc")) << ' ' << fs::equivalent(at("cc/text"), at("cc/hard")) << ' '
              << fs::last_write_time(at("cc/soft")).time_since_epoch().count() << '\n';
    fs::resize_file(at("cc/hard"), 3);
    fs::copy_file(at("cc/text"), at("cc/copied"));
    fs::copy(at("cc/a"), at("cc/tree"), fs::copy_options::recursive);
    std::vector<std::string> names;
    for (auto &entry : fs::recursive_directory_iterator(root)) names.push_back(entry.path());
    std::sort(names.begin(), names.end());
    for (auto &name : names) std::cout << name << '\n';
    std::cout << (fs::space(root).capacity > 0) << '\n';
    fs::current_path(at("cc/a"));
    std::cout << fs::current_path() << fs::absolute("b") << fs::exists("../text") << '\n';
    std::error_code error;
    fs::create_directory(at("cc/text/below"), error);
    std::cout << error.message() << ' ' << fs::create_directory(root, error) << fs::remove(at("none"), error) << '\n';
    try { fs::remove(at("cc")); } catch (fs::filesystem_error &e) { std::cout << e.what() << '\n'; }
    std::cout << fs::remove_all(at("cc/tree")) << '\n';
    return std::system(("cat " + at("cc/again").string()).c_str());
}
