// What Node programs do with files below argv[2], by absolute paths: sync, callbacks (threads), promises, streams.
'use strict';
const fs = require('fs'), path = require('path'), os = require('os');
const { execFileSync, spawnSync } = require('child_process');
const { pipeline } = require('stream/promises');
const root = process.argv[2];
const at = (name) => path.join(root, name);

async function main() {
  fs.mkdirSync(at('js/a/b'), { recursive: true });
  fs.writeFileSync(at('js/text'), 'one\n');
  fs.appendFileSync(at('js/text'), 'two\n');
  console.log(fs.readFileSync(at('js/text'), 'utf8').split('\n'));
  const fd = fs.openSync(at('js/raw'), 'wx+', 0o640);
  fs.writeSync(fd, Buffer.alloc(5000, 'x'), 0, 5000, 100);
  fs.writevSync(fd, [Buffer.from('a'), Buffer.from('b')], 0);
  fs.ftruncateSync(fd, 4000); fs.fchmodSync(fd, 0o600); fs.futimesSync(fd, 1, 2); fs.fsyncSync(fd);
  console.log(fs.fstatSync(fd).size); fs.closeSync(fd);
  fs.renameSync(at('js/raw'), at('js/a/renamed'));
  fs.linkSync(at('js/text'), at('js/hard'));
  fs.symlinkSync('text', at('js/soft'));
  fs.symlinkSync(at('js/a'), at('js/absolute'));
  console.log(fs.readlinkSync(at('js/soft')), fs.readlinkSync(at('js/absolute')));
  console.log(fs.realpathSync(at('js/absolute/b')), fs.realpathSync.native(at('js/absolute/b')));
  fs.utimesSync(at('js/text'), 1000, 2000.5); fs.lutimesSync(at('js/soft'), 3, 4); fs.chmodSync(at('js/text'), 0o604);
  const info = fs.statSync(at('js/soft'), { bigint: true });
  console.log(info.size, info.mode, info.nlink, info.mtimeNs, fs.lstatSync(at('js/soft')).isSymbolicLink());
  fs.accessSync(at('js/text'), fs.constants.R_OK);
  fs.truncateSync(at('js/hard'), 3);
  fs.copyFileSync(at('js/text'), at('js/copied'));
  fs.cpSync(at('js/a'), at('js/tree'), { recursive: true });
  console.log(fs.readdirSync(root, { recursive: true, withFileTypes: true }).map((e) => e.name).sort());
  console.log(fs.existsSync(at('js/none')), fs.statSync(at('js/none'), { throwIfNoEntry: false }));
  console.log(fs.statfsSync(root).bsize > 0);
  const p = fs.promises;
  await Promise.all([...Array(20).keys()].map(async (i) => {
    await p.mkdir(at(`js/p${i}`)); await p.writeFile(at(`js/p${i}/f`), `${i}`);
    await p.rename(at(`js/p${i}/f`), at(`js/p${i}/g`)); await p.stat(at(`js/p${i}/g`));
  }));
  console.log((await p.readdir(at('js'))).length, await p.readFile(at('js/p7/g'), 'utf8'));
  const handle = await p.open(at('js/handle'), 'w+');
  await handle.write('through a handle'); await handle.datasync(); await handle.close();
  await pipeline(fs.createReadStream(at('js/handle')), fs.createWriteStream(at('js/stream')));
  console.log(await p.readFile(at('js/stream'), 'utf8'));
  const temporary = await p.mkdtemp(at('temporary-'));
  console.log(path.dirname(temporary)); await p.rmdir(temporary);
  const folder = await p.opendir(at('js/a'));
  for await (const entry of folder) console.log(entry.name, entry.isDirectory());
  process.chdir(at('js/a'));
  console.log(process.cwd(), fs.readFileSync('../text', 'utf8'));
  console.log(execFileSync('cat', [at('js/handle')], { encoding: 'utf8', cwd: at('js') }));
  console.log(spawnSync('/bin/pwd', { encoding: 'utf8', cwd: at('js/a/b'), env: {} }).stdout);
  fs.writeFileSync(at('js/module.js'), 'module.exports = __filename;');
  console.log(require(at('js/module.js')));
  for (const attempt of [() => fs.readFileSync(at('none')), () => fs.mkdirSync(at('js')), () => fs.rmdirSync(at('js')),
    () => fs.mkdirSync(root), () => fs.openSync(at('js/text/below'), 'r'), () => fs.unlinkSync(at('js'))]) {
    try { attempt(); } catch (error) { console.log(error.message); }
  }
  const watcher = fs.watch(at('js'));
  const seen = new Promise((resolve) => watcher.once('change', (kind, name) => resolve(name)));
  fs.writeFileSync(at('js/watched'), 'x');
  console.log(await seen); watcher.close();
  await p.rm(at('js/tree'), { recursive: true });
  fs.rmSync(at('js/p1'), { recursive: true, force: true });
  console.log(fs.readdirSync(at('js')).sort());
}
main().catch((error) => { console.error(error); process.exit(1); });
