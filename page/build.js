// puts the page where the server finds it
import { cpSync, mkdirSync, rmSync } from 'node:fs'
import { build } from 'esbuild'

const out = new URL('../src/voxelry/serve/page/', import.meta.url).pathname
rmSync(out, { recursive: true, force: true })
mkdirSync(out, { recursive: true })
await build({ entryPoints: ['src/main.ts'], bundle: true, minify: true, format: 'esm', outfile: `${out}main.js` })
for (const name of ['index.html', 'style.css']) cpSync(`src/${name}`, out + name)
