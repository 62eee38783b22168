// the shapes that a slice leaves open: their mean, and one after the other
import { app, element } from './app'
import type { Answer } from './server'

let names: string[] = [] // of meshes: the mean's, then each hypothesis'
let volumes: number[] = []
let shown = 0

export function prepareHypotheses(): void {
  element('before').onclick = () => flip(-1)
  element('after').onclick = () => flip(1)
}

/** The hypotheses of an answer, of which the mean is seen first. */
export function showHypotheses(answer: Answer): void {
  const meshes = answer.files.filter(({ kind }) => kind === 'mesh').map(({ name }) => name)
  const number = (name: string) => Number(/_(\d+)\.[a-z]+$/.exec(name)?.[1] ?? 0)
  const mean = meshes.filter((name) => meshes.every((other) => name.length <= other.length))
  volumes = answer.hypotheses
  names = volumes.length ? [...mean.slice(0, 1), ...meshes.filter((name) => !mean.includes(name)).sort((one, other) => number(one) - number(other))] : []
  shown = 0
  show()
}

/** The next or the one before. */
export function flip(by: number): void {
  if (!names.length) return
  shown = (shown + by + names.length) % names.length
  show()
}

function show(): void {
  element('hypotheses').hidden = !names.length
  if (!names.length) return
  const number = /_(\d+)\.[a-z]+$/.exec(names[shown])?.[1]
  const volume = shown && number ? volumes[Number(number) - 1] : undefined
  element('hypothesis').textContent = shown ? `${number} of ${volumes.length}${volume === undefined ? '' : `, ${Number(volume.toPrecision(3))} ml`}` : 'mean of all'
  app.scene.onlyMesh(names[shown], shown === 0)
}
