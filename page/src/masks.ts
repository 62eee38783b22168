// masks in files: chosen from those that are listed, or uploaded; what was loaded is drawn, and can be drawn on
import { app, attempt, element, make, say } from './app'
import { drawnRuns, loadDrawing } from './pen'
import { server } from './server'

let loaded: { file: number; value: number | null; name: string } | null = null // as long as it is drawn as it was loaded

export function prepareMasks(): void {
  element('loadMask').onclick = attempt(async () => {
    if (element('masks').hidden) await list()
    else showList([])
  })
  const upload = element<HTMLInputElement>('maskUpload')
  upload.onchange = attempt(async () => {
    const [chosen] = upload.files ?? []
    upload.value = '' // the same one may be chosen again
    if (!chosen) return
    const { file } = await server.upload(app.current, chosen)
    await load(file, chosen.name, null)
  })
  const value = element<HTMLSelectElement>('maskValue')
  value.onchange = attempt(async () => {
    if (loaded) await load(loaded.file, loaded.name, value.value === '' ? null : Number(value.value))
  })
}

/** What a prediction is asked with: the file, where what is drawn is what it holds, so that no voxel of it is lost. */
export const maskAsked = () => (loaded ? { file: loaded.file, value: loaded.value } : drawnRuns())

/** What is drawn is another thing than what was loaded. */
export function forgetMask(): void {
  loaded = null
  element('maskLoaded').hidden = true
}

/** The masks of an image that is opened aren't those of the one before. */
export function forgetMasks(): void {
  forgetMask()
  showList([])
}

async function list(): Promise<void> {
  const names = await server.masks(app.current)
  showList([
    ...names.map((name, file) => make('button', { type: 'button', className: 'plain', textContent: name, onclick: attempt(() => load(file, name, null)) })),
    make('button', { type: 'button', textContent: 'Upload a file', onclick: () => element('maskUpload').click() }),
  ])
}

function showList(buttons: HTMLElement[]): void {
  element('masks').replaceChildren(...buttons.map((button) => make('li', {}, button)))
  element('masks').hidden = !buttons.length
  element('loadMask').ariaExpanded = String(buttons.length > 0)
  buttons[0]?.focus()
}

async function load(file: number, name: string, value: number | null): Promise<void> {
  const id = app.current
  const { drawn, values, position, told } = await server.loadMask(id, file, value)
  if (id !== app.current) return
  const reached = loadDrawing(drawn)
  loaded = { file, value, name }
  if (!reached) app.scene.go(position)
  showList([])
  say(told && `${name}: ${told}`)
  const select = element<HTMLSelectElement>('maskValue')
  const known = value === null ? values.map(String) : [...select.options].slice(1).map((one) => one.value)
  select.replaceChildren(new Option('all', ''), ...known.map((one) => new Option(one)))
  select.value = value === null ? '' : String(value)
  element('maskValueOf').hidden = known.length < 2
  element('maskName').textContent = name
  element('maskLoaded').hidden = false
}
